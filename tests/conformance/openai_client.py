"""Checks a Norma server with the real `openai` package. See README.md beside this file."""

import argparse
import base64
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import threading

import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CHECKS = []


def check(function):
    """Registers a check; its docstring is the fact that it states."""
    CHECKS.append(function)
    return function


class Server:
    """What a check may use: clients, and whether the server was started here."""

    def __init__(self, url, model, key, own):
        self.url, self.model, self.key, self.own = url, model, key, own
        self.client = self.with_key(key)

    def with_key(self, key):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, **more):
        more.setdefault("model", self.model)
        more.setdefault("messages", [{"role": "user", "content": "Is the heart enlarged?"}])
        more.setdefault("max_tokens", 8)
        more.setdefault("temperature", 0)
        return self.client.chat.completions.create(**more)


def image_message(text):
    data = base64.b64encode((GOLDEN / "images" / "wide.png").read_bytes()).decode()
    url = {"url": f"data:image/png;base64,{data}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


@check
def models(server):
    """models are listed and retrieved"""
    names = [model.id for model in server.client.models.list()]
    assert server.model in names, names
    card = server.client.models.retrieve(server.model)
    assert (card.id, card.object) == (server.model, "model")
    assert card.owned_by


@check
def chat(server):
    """a chat completion has its text, its end, its counts and its maker"""
    answer = server.ask()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.model == server.model
    assert answer.base_digest.startswith("sha256:")
    assert answer.adapter_generation is None or answer.adapter_generation.startswith("sha256:")


@check
def greedy_is_repeatable(server):
    """the same greedy question gets the same answer, a seeded one too"""
    assert server.ask().choices == server.ask().choices
    warm = {"temperature": 1.1, "seed": 7, "top_p": 0.9}
    assert server.ask(**warm).choices == server.ask(**warm).choices


@check
def headers(server):
    """the answer's headers name the model and the base"""
    raw = server.client.chat.completions.with_raw_response.create(
        model=server.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert raw.headers["x-norma-model"] == server.model
    assert raw.headers["x-norma-base-digest"] == raw.parse().base_digest
    assert raw.headers["x-request-id"]


@check
def image(server):
    """an image as a data URL changes the prompt and the answer is the same each time"""
    with_image = server.ask(messages=image_message("Is the heart enlarged?"))
    without = server.ask()
    assert with_image.usage.prompt_tokens > without.usage.prompt_tokens
    again = server.ask(messages=image_message("Is the heart enlarged?"))
    assert with_image.choices == again.choices


@check
def stream(server):
    """a stream put together is the whole answer, with counts at its end"""
    messages = image_message("Describe the findings.")
    whole = server.ask(messages=messages)
    pieces = list(server.ask(messages=messages, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    reasons = [piece.choices[0].finish_reason for piece in pieces if piece.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert all(reason is None for reason in reasons[:-1])
    assert pieces[-1].choices == [] and pieces[-1].usage.total_tokens == whole.usage.total_tokens


@check
def stream_helper(server):
    """the package's own stream helper reads the stream"""
    messages = [{"role": "user", "content": "Hi"}]
    whole = server.ask(messages=messages, max_tokens=12).choices[0].message.content
    # The helper takes an answer cut at its length for a fault, so this one ends at a stop string.
    stop = whole[6:8]
    arguments = {"model": server.model, "max_tokens": 12, "temperature": 0, "stop": stop}
    with server.client.chat.completions.stream(messages=messages, **arguments) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == whole[: whole.index(stop)]


@check
def choices_and_logprobs(server):
    """several answers come with the log probabilities asked for"""
    answer = server.ask(n=2, temperature=1.0, seed=3, logprobs=True, top_logprobs=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2


@check
def asynchronous(server):
    """the asynchronous client gets the same answer"""
    import asyncio

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
            messages = [{"role": "user", "content": "Is the heart enlarged?"}]
            arguments = {"model": server.model, "max_tokens": 8, "temperature": 0}
            return await client.chat.completions.create(messages=messages, **arguments)

    assert asyncio.run(ask()).choices == server.ask().choices


@check
def bad_requests(server):
    """what cannot be honoured raises BadRequestError with the field's name"""
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for param, more in [
        ("tools", {"tools": [tool]}),
        ("temperature", {"temperature": -1}),
        ("max_tokens", {"max_tokens": 0}),
        ("logit_bias", {"logit_bias": {"1": 5}}),
        ("presence_penalty", {"presence_penalty": 1}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("messages", {"messages": []}),
    ]:
        error = raises(openai.BadRequestError, lambda more=more: server.ask(**more))
        assert error.param == param, (error.param, error.message)
        assert error.type == "invalid_request_error" and error.code


@check
def remote_images(server):
    """an image's address elsewhere raises BadRequestError: nothing is fetched"""
    url = {"url": "https://example.org/film.png"}
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    error = raises(openai.BadRequestError, lambda: server.ask(messages=messages))
    assert error.code == "invalid_image_url"


@check
def unknown_model(server):
    """an unknown model raises NotFoundError and never falls back to the base"""
    error = raises(openai.NotFoundError, lambda: server.ask(model="no-such-adapter"))
    assert (error.param, error.code) == ("model", "model_not_found")
    raises(openai.NotFoundError, lambda: server.client.models.retrieve("no-such-adapter"))


@check
def wrong_key(server):
    """a wrong key raises AuthenticationError"""
    if not server.own:
        return "needs a server of its own"
    client = server.with_key("norma_wrong")
    error = raises(openai.AuthenticationError, client.models.list)
    assert error.code == "invalid_api_key"


@check
def missing_role(server):
    """a key without the role raises PermissionDeniedError"""
    if not server.own:
        return "needs a server of its own"
    error = raises(
        openai.PermissionDeniedError,
        lambda: server.client.post("/adapters", cast_to=object, body={}),
    )
    assert error.code == "missing_role"


@check
def full_queue(server):
    """more requests than may wait raise RateLimitError, and the others are answered"""
    if not server.own:
        return "needs a server of its own"
    outcomes = []

    def ask():
        try:
            outcomes.append(server.ask(max_tokens=200, extra_body={"ignore_eos": True}))
        except openai.RateLimitError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if isinstance(outcome, openai.RateLimitError)]
    assert len(outcomes) == 40 and 0 < len(refused) < 40, (len(outcomes), len(refused))
    assert all(error.code == "queue_full" for error in refused)
    assert all(error.response.headers["retry-after"] for error in refused)


@contextlib.contextmanager
def started(program):
    """A server with keys, one place to run and a queue of two."""
    with tempfile.TemporaryDirectory() as folder:
        new = [program, "key", "new", "--tenant", "clinic", "--roles", "infer"]
        lines = subprocess.run(new, check=True, capture_output=True, text=True).stdout.split()
        key = next(word for word in lines if word.startswith("norma_"))
        keys = pathlib.Path(folder) / "keys"
        keys.write_text(line_for_file(lines))
        command = [
            program, "serve", "--base", GOLDEN / "llava" / "llama_a", "--data-dir", f"{folder}/data",
            "--listen", "127.0.0.1:0", "--metrics-listen", "none", "--keys", keys,
            "--kv-tokens", "4096", "--max-sequences", "1", "--queue", "2",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                url = None
                for line in process.stdout:
                    if line.startswith("address"):
                        url = line.split()[1].removesuffix("/v1")
                    if line.strip() == "ready":
                        break
                assert url, "the server did not start"
                yield Server(url, "llama_a", key, own=True)
            finally:
                process.terminate()
        assert process.returncode == 0, f"the server ended with {process.returncode}"


def line_for_file(words):
    """The line for the file of keys among the words that `norma key new` printed."""
    return next(word for word in words if word.startswith("{"))


def run(server):
    failed = 0
    for function in CHECKS:
        try:
            skipped = function(server)
            mark = f"left out: {skipped}" if skipped else "holds"
        except Exception as error:  # A check that fails must not hide those after it.
            failed += 1
            mark = f"FAILS: {type(error).__name__}: {error}"
        print(f"{function.__doc__}: {mark}")
    print(f"openai {openai.__version__}: {len(CHECKS) - failed} of {len(CHECKS)} checks")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a server that runs already, such as http://127.0.0.1:8080")
    parser.add_argument("--model", help="its base or an alias")
    parser.add_argument("--key", default="none", help="a key with the role infer")
    parser.add_argument("--program", default=ROOT / "target" / "release" / "norma", help="what to start")
    args = parser.parse_args()
    if args.url:
        return run(Server(args.url.rstrip("/").removesuffix("/v1"), args.model, args.key, own=False))
    with started(args.program) as server:
        return run(server)


if __name__ == "__main__":
    sys.exit(main())
