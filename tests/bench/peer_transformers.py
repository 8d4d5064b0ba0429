"""transformers on torch's CPU, greedy by hand: less overhead than `generate`. Arguments: JSON with `checkpoint`,
`weights` (f32 or bf16), `threads`."""

import json
import sys
import time

import torch
import transformers
from transformers import AutoProcessor, LlavaForConditionalGeneration

from peer_protocol import Answer, serve


class Transformers:
    """A batch is homogeneous: all requests of it have prompts of one length, and the one set of norms."""

    def __init__(self, options):
        self.options = options

    def load(self):
        torch.set_num_threads(self.options["threads"])
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[self.options["weights"]]
        self.model = LlavaForConditionalGeneration.from_pretrained(self.options["checkpoint"], dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(self.options["checkpoint"])
        self.dtype = dtype
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}",
                "attention": self.model.config._attn_implementation}

    @torch.inference_mode()
    def stream(self, requests, tokens):
        begun = time.perf_counter()
        inputs = self.inputs(requests)
        cache, chosen = None, []
        answers = [Answer(tokens=tokens, prompt_tokens=inputs["input_ids"].shape[1]) for _ in requests]
        for _ in range(tokens):
            out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = out.logits[:, -1].argmax(-1)
            chosen.append(token)
            at = time.perf_counter() - begun
            for answer in answers:
                answer.pieces.append(at)
                answer.end = at
            inputs = {"input_ids": token[:, None]}
        for answer, ids in zip(answers, torch.stack(chosen, 1)):
            answer.text = self.processor.tokenizer.decode(ids)
        return answers

    def inputs(self, requests):
        from io import BytesIO

        from PIL import Image
        texts, images = [], []
        for request in requests:
            content = [{"type": "text", "text": request.text}]
            if request.png:
                content.insert(0, {"type": "image"})
                images.append(Image.open(BytesIO(request.png)).convert("RGB"))
            messages = [{"role": "user", "content": content}]
            texts.append(self.processor.apply_chat_template(messages, add_generation_prompt=True))
        inputs = self.processor(text=texts, images=images or None, return_tensors="pt", add_special_tokens=False)
        inputs = dict(inputs)
        # All prompts have one length, so nothing is masked.
        inputs.pop("attention_mask", None)
        inputs.pop("token_type_ids", None)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return inputs


if __name__ == "__main__":
    serve(Transformers(json.loads(sys.argv[1])))
