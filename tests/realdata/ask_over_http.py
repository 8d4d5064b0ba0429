"""Asks a running server a list of questions, the base against an adapter, and compares.

In: the question list that `norma-train questions` writes, a server's address, two model names.
Out: exact match of both with Wilson's 95 % intervals, closed and open questions apart, and the
difference with a paired bootstrap over images. Every question is asked over `POST /v1/vqa`.

    python3 ask_over_http.py QUESTIONS.json --url http://127.0.0.1:8080 --base NAME --adapter ALIAS

Needs Python 3.9 and nothing else. Images are read from the paths in the list and sent as they are.
"""

import argparse
import base64
import concurrent.futures
import json
import math
import pathlib
import random
import sys
import time
import urllib.error
import urllib.request

MEDIA = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
Z = 1.959963984540054


def compare(text):
    """The form in which answers are compared, as in the trainer: lower case, single blanks, no full stop."""
    return " ".join(text.lower().split()).rstrip(". ")


def data_url(path):
    path = pathlib.Path(path)
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{MEDIA[path.suffix.lower()]};base64,{content}"


def ask(server, model, question, image):
    """The server's answer and the generation that gave it."""
    body = json.dumps({"model": model, "question": question, "image": image}).encode()
    headers = {"Content-Type": "application/json"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    for attempt in range(6):
        request = urllib.request.Request(f"{server.url}/v1/vqa", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                answer = json.load(reply)
                return answer["answer"], answer.get("adapter_generation")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code not in (429, 503) or attempt == 5:
                sys.exit(f"{server.url} answered {error.code} to a question for `{model}`: {text}")
            time.sleep(float(error.headers.get("Retry-After") or 1))
        except urllib.error.URLError as error:
            sys.exit(f"{server.url} cannot be reached: {error.reason}")
    raise AssertionError("the last attempt returns or exits")


def wilson(hits, n):
    """A proportion with its interval (E. B. Wilson, JASA 22, 1927)."""
    if n == 0:
        return 0.0, 0.0, 1.0
    value = hits / n
    centre = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return value, max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(differences, samples, seed):
    """The mean of paired differences and its percentile interval, whole images drawn, so that questions
    about the same image are not taken for independent. `differences`: by image, a list each."""
    groups = [(sum(one), len(one)) for one in differences.values()]
    rng = random.Random(seed)
    means = []
    for _ in range(samples):
        drawn = [groups[rng.randrange(len(groups))] for _ in groups]
        means.append(sum(s for s, _ in drawn) / sum(n for _, n in drawn))
    means.sort()
    mean = sum(s for s, _ in groups) / sum(n for _, n in groups)
    return mean, means[round(0.025 * (samples - 1))], means[round(0.975 * (samples - 1))]


def percent(value):
    return f"{100 * value:5.1f}"


def table(questions, right, seed):
    """Rows of the comparison; `right[model][i]` says whether question i was answered exactly."""
    base, adapter = right
    lines = []
    for name, kept in [("closed", True), ("open", False), ("all", None)]:
        rows = [i for i, q in enumerate(questions) if kept is None or q["closed"] == kept]
        if not rows:
            continue
        cells = [f"{name:7}", f"{len(rows):5}"]
        for model in right:
            value, low, high = wilson(sum(right[model][i] for i in rows), len(rows))
            cells.append(f"{percent(value)} [{percent(low)},{percent(high)}]")
        by_image = {}
        for i in rows:
            step = right[adapter][i] - right[base][i]
            by_image.setdefault(questions[i]["group"], []).append(step)
        value, low, high = bootstrap(by_image, 10_000, seed)
        cells.append(f"{100 * value:+5.1f} [{100 * low:+5.1f},{100 * high:+5.1f}]")
        lines.append(" | ".join(cells))
    head = f"{'':7} | {'n':>5} | {base:21} | {adapter:21} | difference"
    return "\n".join([head, *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("questions", type=pathlib.Path)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", help="API key, where the server has keys")
    parser.add_argument("--base", required=True, help="the base's model name")
    parser.add_argument("--adapter", required=True, help="the adapter's alias")
    parser.add_argument("--together", type=int, default=16, help="requests under way at once")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--answers", type=pathlib.Path, help="write every answer here, as JSON")
    arguments = parser.parse_args()
    arguments.url = arguments.url.rstrip("/")

    listed = json.loads(arguments.questions.read_text())
    questions = listed["questions"]
    images = {q["image"]: data_url(q["image"]) for q in questions}
    models = (arguments.base, arguments.adapter)
    # Base and adapter in turn, so that the server runs them mixed.
    jobs = [(model, i) for i in range(len(questions)) for model in models]

    def one(job):
        model, i = job
        return ask(arguments, model, questions[i]["question"], images[questions[i]["image"]])

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.together) as pool:
        replies = dict(zip(jobs, pool.map(one, jobs)))
    seconds = time.monotonic() - start

    right = {
        model: [
            int(compare(replies[model, i][0]) == compare(q["answer"]))
            for i, q in enumerate(questions)
        ]
        for model in models
    }
    generations = {model: sorted({str(replies[model, i][1]) for i in range(len(questions))}) for model in models}
    print(f"{listed['source']}: {len(questions)} questions about {len(images)} images, {len(jobs)} requests "
          f"in {seconds:.1f} s, {arguments.together} at once")
    for model in models:
        print(f"{model}: generation {', '.join(generations[model])}")
    print("exact match in %, 95 % intervals (Wilson; difference: bootstrap over images)")
    print(table(questions, right, arguments.seed))
    if arguments.answers:
        rows = [
            {**q, **{model: replies[model, i][0] for model in models}} for i, q in enumerate(questions)
        ]
        arguments.answers.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
