"""mistral.rs through its own wheel, in this process. Arguments: JSON with `checkpoint`, `weights` (f32, bf16 or
q8_0), `threads`."""

import json
import os
import sys
import threading
import time
from importlib.metadata import version

OPTIONS = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
os.environ["RAYON_NUM_THREADS"] = str(OPTIONS.get("threads", 1))

import mistralrs

from peer_protocol import Answer, at_once, serve


class MistralRs:
    """Its prefix cache is off."""

    def __init__(self, options):
        self.options = options
        # The wheel refuses two calls at the same moment.
        self.sending = threading.Lock()

    def load(self):
        weights = self.options["weights"]
        dtype = mistralrs.ModelDType.BF16 if weights == "bf16" else mistralrs.ModelDType.F32
        which = mistralrs.Which.MultimodalPlain(
            model_id=self.options["checkpoint"], arch=mistralrs.MultimodalArchitecture.LLaVA, dtype=dtype)
        self.runner = mistralrs.Runner(
            which=which, prefix_cache_n=0, no_paged_attn=True, token_source="none", max_seqs=8,
            in_situ_quant="Q8_0" if weights == "q8_0" else None)
        return {"version": f"mistralrs {version('mistralrs')}"}

    def stream(self, requests, tokens):
        return at_once([self.one(request, tokens) for request in requests])

    def one(self, request, tokens):
        content = request.text
        if request.png:
            # Its LLaVA wants the image's tag written out in the text.
            content = [{"type": "image_url", "image_url": {"url": request.data_url}},
                       {"type": "text", "text": f"<image>\n{request.text}"}]
        chat = mistralrs.ChatCompletionRequest(
            model="default", messages=[{"role": "user", "content": content}],
            max_tokens=tokens, temperature=0.0, stream=True)

        def call():
            answer, begun = Answer(), time.perf_counter()
            with self.sending:
                chunks = self.runner.send_chat_completion_request(chat)
            for chunk in chunks:
                at = time.perf_counter() - begun
                for choice in chunk.choices:
                    if text := choice.delta.content:
                        answer.pieces.append(at)
                        answer.text += text
                usage = getattr(chunk, "usage", None)
                if usage:
                    answer.tokens, answer.prompt_tokens = usage.completion_tokens, usage.prompt_tokens
                answer.end = at
            return answer

        return call


if __name__ == "__main__":
    serve(MistralRs(OPTIONS))
