"""llama.cpp through its server, which the `xllamacpp` wheel brings. Arguments: JSON with `checkpoint`, `weights`
(f32, bf16 or q8_0), `threads`, `gguf` (a folder for the converted files), `slots`."""

import base64
import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import gguf_llava
import xllamacpp

from peer_protocol import Answer, at_once, post_stream, serve


class LlamaCpp:
    """Its prompt cache is off: every image and prompt is new."""

    def __init__(self, options):
        self.options = options

    def load(self):
        options = self.options
        text, vision = gguf_llava.write(Path(options["checkpoint"]), Path(options["gguf"]), options["weights"])
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(text), str(vision)
        params.n_parallel = options["slots"]
        params.n_ctx = 1536 * options["slots"]
        params.cpuparams.n_threads = options["threads"]
        params.cpuparams_batch.n_threads = options["threads"]
        params.n_gpu_layers = 0
        params.cache_prompt = False
        params.cache_ram_mib = 0
        params.port = 0
        params.verbosity = 1
        params.mmproj_use_gpu = False
        params.fit_params = False
        self.server = xllamacpp.Server(params)
        url = urllib.parse.urlsplit(self.server.listening_address)
        self.address = url.hostname, url.port
        with urllib.request.urlopen(f"{self.server.listening_address}/props", timeout=60) as response:
            self.marker = json.load(response).get("media_marker", "<__media__>")
        return {"version": f"xllamacpp {xllamacpp.__version__}", "build": xllamacpp.get_system_info()}

    def stream(self, requests, tokens):
        return at_once([self.one(request, tokens) for request in requests])

    def one(self, request, tokens):
        prompt = f"USER: {request.text} ASSISTANT:"
        if request.png:
            prompt = {"prompt_string": f"USER: {self.marker}\n{request.text} ASSISTANT:",
                      "multimodal_data": [base64.b64encode(request.png).decode()]}
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
                "ignore_eos": True, "stream": True, "cache_prompt": False}

        def call():
            answer = Answer()
            for at, event in post_stream(self.address, "/completion", body):
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                if event.get("content"):
                    answer.pieces.append(at)
                    answer.text += event["content"]
                if event.get("stop"):
                    answer.tokens = event["tokens_predicted"]
                    answer.prompt_tokens = event["tokens_evaluated"]
                    answer.end = at
            return answer

        return call


if __name__ == "__main__":
    serve(LlamaCpp(json.loads(sys.argv[1])))
