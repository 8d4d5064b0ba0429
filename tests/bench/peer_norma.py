"""Norma behind its own HTTP. Arguments: JSON with `program`, `checkpoint`, `weights`, `threads`, `data`, `adapters`."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from peer_protocol import Answer, at_once, post_stream, serve


class Norma:
    """`adapters` distinct adapters take turns over the requests of a batch; 0: the base alone."""

    def __init__(self, options):
        self.options = options
        self.server = None

    def load(self):
        options = self.options
        command = [options["program"], "serve", "--base", options["checkpoint"], "--data-dir", options["data"],
                   "--listen", "127.0.0.1:0", "--metrics-listen", "none", "--served-name", "base",
                   "--request-timeout", "3600"]
        if options["weights_flag"]:
            command += ["--weights", options["weights"]]
        Path(options["data"]).mkdir(parents=True, exist_ok=True)
        if options["adapters"]:
            subprocess.run([options["program"], "bench", "adapters", "--base", options["checkpoint"], "--data-dir",
                            options["data"], "--count", str(options["adapters"])], check=True, stdout=sys.stderr)
        env = os.environ | {"RAYON_NUM_THREADS": str(options["threads"]), "RUST_LOG": "warn"}
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        for line in self.server.stdout:
            if line.startswith("address"):
                host, port = line.split("http://")[1].split("/")[0].split(":")
                self.address = host, int(port)
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError(f"norma serve ended with {self.server.wait()}")
        with urllib.request.urlopen(f"http://{host}:{port}/version", timeout=60) as response:
            return {"version": json.load(response).get("version")}

    def stream(self, requests, tokens):
        names = [f"bench-{i}" for i in range(self.options["adapters"])] if len(requests) > 1 else []
        calls = [self.one(r, tokens, names[i % len(names)] if names else "base") for i, r in enumerate(requests)]
        return at_once(calls)

    def one(self, request, tokens, model):
        content = [{"type": "text", "text": request.text}]
        if request.png:
            content.insert(0, {"type": "image_url", "image_url": {"url": request.data_url}})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens,
                "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}

        def call():
            answer = Answer()
            for at, event in post_stream(self.address, "/v1/chat/completions", body):
                if event.get("usage"):
                    answer.tokens = event["usage"]["completion_tokens"]
                    answer.prompt_tokens = event["usage"]["prompt_tokens"]
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        answer.pieces.append(at)
                        answer.text += text
                answer.end = at
            return answer

        return call

    def close(self):
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()


if __name__ == "__main__":
    serve(Norma(json.loads(sys.argv[1])))
