"""What every peer's worker does with a task: JSON lines in, JSON lines out, times measured where the tokens arrive.

A worker is a program with a `Peer`: `load()` returns facts about what was loaded, `stream(requests, tokens)` puts
all requests at once and returns an `Answer` for each. Everything else, above all what the figures mean, is here, so
that it is the same for all peers.
"""

import base64
import http.client
import io
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

QUESTION = "Is there a pleural effusion on the left side?"

@dataclass
class Request:
    """One question, with a PNG or without."""

    text: str
    png: bytes | None = None

    @property
    def data_url(self):
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Answer:
    """Seconds from the request to each piece of the answer, to its end, and what was counted."""

    pieces: list = field(default_factory=list)
    end: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""


def picture(seed, side):
    """A PNG that no cache has seen: grey slopes with noise in them, by seed. `side`: the tower's own pixels, so that
    no peer resizes and all see the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (8, 8), dtype=np.uint8)
    image = Image.fromarray(coarse, "L").resize((side, side), Image.Resampling.BICUBIC)
    noise = random.integers(0, 8, (side, side), dtype=np.uint8)
    image = Image.fromarray(np.minimum(np.asarray(image), 247) + noise, "L").convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def question(seed, side):
    return Request(QUESTION, picture(seed, side))


def long_text(seed, words):
    """A question of words alone, different from the first one on."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlu"))
    return " ".join("".join(random.choice(letters, 3)) for _ in range(words))


def run_task(peer, task):
    """One figure."""
    seed, tokens = task["seed"], task.get("tokens", 1)
    kind, side = task["task"], task["side"]
    if kind == "first_token":
        answer = peer.stream([question(seed, side)], 1)[0]
        return {"seconds": answer.pieces[0], "prompt_tokens": answer.prompt_tokens}
    if kind == "decode":
        answer = peer.stream([question(seed, side)], tokens)[0]
        check_length(answer, tokens)
        return {"tokens_per_second": (tokens - 1) / (answer.pieces[-1] - answer.pieces[0])}
    if kind == "batch":
        answers = peer.stream([question(seed + i, side) for i in range(task["requests"])], tokens)
        for answer in answers:
            check_length(answer, tokens)
        return batch_rates(answers)
    if kind == "prefill":
        answer = peer.stream([Request(long_text(seed, task["words"]))], 1)[0]
        return {"rows_per_second": answer.prompt_tokens / answer.pieces[0], "rows": answer.prompt_tokens}
    if kind == "greedy":
        words = Request(long_text(seed, 20))
        return {"image": peer.stream([question(seed, side)], tokens)[0].text, "words": peer.stream([words], tokens)[0].text}
    raise ValueError(f"unknown task {kind}")


def check_length(answer, tokens):
    if answer.tokens != tokens:
        raise RuntimeError(f"an answer has {answer.tokens} tokens, {tokens} were wanted")


def batch_rates(answers):
    """Tokens a second while all requests decode (from the last one's first token to the first one's end), and over
    the whole time, prompts included. Pieces stand for tokens: the greedy tokens of these checkpoints are whole
    characters."""
    begin, end = max(a.pieces[0] for a in answers), min(a.pieces[-1] for a in answers)
    inside = sum(begin < at <= end for a in answers for at in a.pieces)
    per_piece = sum(a.tokens for a in answers) / sum(len(a.pieces) for a in answers)
    whole = sum(a.tokens for a in answers) / max(a.pieces[-1] for a in answers)
    rate = inside * per_piece / (end - begin) if end > begin else None
    return {"tokens_per_second": rate, "with_prompts": whole, "window_seconds": end - begin}


def serve(peer):
    """Loads and answers until the input ends. Whatever libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        begun = time.perf_counter()
        facts = peer.load() or {}
        print(json.dumps({"ok": facts | {"load_seconds": time.perf_counter() - begun}}), file=out)
        for line in sys.stdin:
            try:
                reply = {"ok": run_task(peer, json.loads(line))}
            except Exception as error:  # a peer's failure is a result
                traceback.print_exc()
                reply = {"error": reason(error)}
            print(json.dumps(reply), file=out)
    except BaseException as error:
        traceback.print_exc()
        print(json.dumps({"error": reason(error)}), file=out)
    finally:
        if hasattr(peer, "close"):
            peer.close()


def reason(error):
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def at_once(calls):
    """Runs the calls in threads of their own and returns their results in order."""
    results = [None] * len(calls)

    def run(index):
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def post_stream(address, path, body):
    """Sends JSON and yields (seconds, event) for each server-sent event; the event is parsed after its time is taken."""
    host, port = address
    connection = http.client.HTTPConnection(host, port, timeout=86400)
    begun = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}: {response.read()[:300].decode(errors='replace')}")
    for line in response:
        at = time.perf_counter() - begun
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield at, json.loads(line[6:])
    connection.close()
