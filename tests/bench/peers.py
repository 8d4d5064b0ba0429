"""Norma beside other programs on one machine: one run, in turns, the same checkpoint, images, prompts and lengths.

    python tests/bench/peers.py CHECKPOINT --norma target/release/norma --weights f32,bf16,q8_0 --json out.json

CHECKPOINT is a folder written by `random_llava.py`. Each peer is a process of its own; while one computes the others
are stopped (SIGSTOP), so that nothing spins beside it. A peer that is not installed, cannot load the checkpoint or
fails at a task stands in the result with its reason. See README.md here for what is measured.
"""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
WEIGHTS = ("f32", "bf16", "q8_0")
PEERS = ("norma", "transformers", "mistralrs", "llama.cpp")
BATCH = 8

# Name, the task's field, its unit, whether more is better.
METRICS = [
    ("first_token", "seconds", "image and prompt to first token, ms", False),
    ("decode", "tokens_per_second", "tokens/s, batch 1", True),
    ("batch", "tokens_per_second", f"tokens/s, batch {BATCH}", True),
    ("prefill", "rows_per_second", "prefill rows/s", True),
]


class Failed(Exception):
    """A peer's reason."""


class Worker:
    """One peer with one kind of weights, in a process group of its own that runs only during a task."""

    def __init__(self, name, command, log):
        self.name, self.command, self.log = name, command, log
        self.process = None

    def start(self, timeout):
        try:
            with open(self.log, "a") as log:
                self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                stderr=log, cwd=HERE, start_new_session=True)
        except OSError as error:
            raise Failed(str(error)) from None
        facts = self.receive(timeout)
        self.tell(signal.SIGSTOP)
        return facts

    def run(self, task, timeout):
        self.tell(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
            return self.receive(timeout)
        except BrokenPipeError:
            raise Failed(self.last_words()) from None
        finally:
            self.tell(signal.SIGSTOP)

    def receive(self, timeout):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not ready:
            self.end(signal.SIGKILL)
            raise Failed(f"nothing came for {timeout} s")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["ok"]

    def last_words(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"ended ({self.process.poll()}): {lines[-1][:300] if lines else 'without a word'}"

    def tell(self, number):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self, number=signal.SIGTERM):
        if not self.process:
            return
        self.tell(signal.SIGCONT)
        if self.process.poll() is None and number == signal.SIGTERM:
            self.process.stdin.close()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None


def own_types(peer, asked):
    """What torch does with bf16 on such a processor is Norma's `bf16-dot`."""
    cpu = Path("/proc/cpuinfo")
    has_dot = cpu.exists() and "avx512_bf16" in cpu.read_text()
    return ["bf16-dot"] if peer == "norma" and "bf16" in asked and has_dot else []


def workers(args, folder):
    """All that were asked for, and reasons for those that cannot be."""
    norma_help = subprocess.run([args.norma, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    has_weights = "--weights" in norma_help
    found, reasons = [], {}
    for peer in args.peers:
        for weights in args.weights + own_types(peer, args.weights):
            name = f"{peer} {weights}"
            options = {"checkpoint": str(args.checkpoint), "weights": weights, "threads": args.threads}
            python = args.python
            if peer == "norma":
                options |= {"program": str(Path(args.norma).resolve()), "data": str(folder / f"data-{weights}"),
                            "adapters": BATCH, "weights": {"q8_0": "int8"}.get(weights, weights),
                            "weights_flag": has_weights}
                if weights != "f32" and not has_weights:
                    reasons[name] = "this binary's `serve` has no --weights"
                    continue
            elif peer == "transformers":
                python = args.transformers_python
                if weights == "q8_0":
                    reasons[name] = "no 8-bit weights on a CPU"
                    continue
            elif peer == "llama.cpp":
                options |= {"gguf": str(args.gguf), "slots": BATCH}
            script = HERE / f"peer_{peer.replace('.', '_')}.py"
            command = [python, str(script), json.dumps(options)]
            found.append(Worker(name, command, folder / f"{peer}-{weights}.log"))
    return found, reasons


def tasks_of(args, round_index):
    """The tasks of a round; the seeds make images and prompts that no cache has seen."""
    seed = args.seed + 1000 * (round_index + 1)
    for repeat in range(args.repeats):
        yield {"task": "first_token", "seed": seed + repeat}
    yield {"task": "decode", "seed": seed + 100, "tokens": args.tokens}
    yield {"task": "batch", "seed": seed + 200, "tokens": args.tokens, "requests": BATCH}
    yield {"task": "prefill", "seed": seed + 300, "words": args.words}


class Results:
    """Samples by peer, metric and round, and reasons where there are none."""

    def __init__(self):
        self.samples = {}
        self.reasons = {}
        self.facts = {}
        self.greedy = {}

    def keep(self, name, task, round_index, reply):
        for kind, field, _, _ in METRICS:
            if kind == task["task"] and reply.get(field) is not None:
                rounds = self.samples.setdefault(name, {}).setdefault(kind, {})
                rounds.setdefault(round_index, []).append(reply[field])
            elif kind == task["task"]:
                self.reasons[f"{name}, {kind}"] = "no moment at which all requests were decoding"
        if reply.get("with_prompts"):
            rounds = self.samples.setdefault(name, {}).setdefault("batch_with_prompts", {})
            rounds.setdefault(round_index, []).append(reply["with_prompts"])

    def by_round(self, name, kind):
        rounds = self.samples.get(name, {}).get(kind, {})
        return {index: median(values) for index, values in rounds.items()}

    def median(self, name, kind):
        rounds = self.by_round(name, kind)
        return median(rounds.values()) if rounds else None


def measure(args, found, results):
    """Runs all rounds."""
    alive = []
    for worker in found:
        try:
            results.facts[worker.name] = worker.start(args.timeout)
            task = {"task": "greedy", "seed": args.seed, "tokens": 16}
            results.greedy[worker.name] = worker.run(task | {"side": args.side}, args.timeout)
            say(f"{worker.name}: loaded in {results.facts[worker.name]['load_seconds']:.1f} s")
            alive.append(worker)
        except Failed as reason:
            results.reasons[worker.name] = str(reason)
            say(f"{worker.name}: {reason}")
            worker.end()
        if args.reload:
            worker.end()
    for round_index in range(args.rounds):
        order = alive[round_index % len(alive):] + alive[:round_index % len(alive)] if alive else []
        turns = [(task, worker) for task in tasks_of(args, round_index) for worker in order]
        if args.reload:
            # One peer in memory at a time: all its tasks of a round together.
            turns.sort(key=lambda turn: order.index(turn[1]))
        for task, worker in turns:
            turn(args, results, (task, worker, round_index))
        if args.reload and order:
            order[-1].end()
        say(f"round {round_index + 1} of {args.rounds} done")
    for worker in found:
        worker.end()


def turn(args, results, what):
    task, worker, round_index = what
    key = f"{worker.name}, {task['task']}"
    if key in results.reasons:
        return
    try:
        if worker.process is None:
            if args.reload:
                for other in args.workers:
                    other.end()
            worker.start(args.timeout)
        results.keep(worker.name, task, round_index, worker.run(task | {"side": args.side}, args.timeout))
    except Failed as reason:
        results.reasons[key] = str(reason)
        say(f"{key}: {reason}")


def ratios(results, ours, theirs, kinds):
    """Ours over theirs (above 1: Norma is ahead): median, least and most of the rounds that both have."""
    our_kind, their_kind, more_is_better = kinds
    a, b = results.by_round(ours, our_kind), results.by_round(theirs, their_kind)
    pairs = [a[i] / b[i] if more_is_better else b[i] / a[i] for i in sorted(a.keys() & b.keys())]
    return {"median": median(pairs), "min": min(pairs), "max": max(pairs)} if pairs else None


def compare(results, names):
    """Ratios by metric and pair."""
    table = {}
    ours = [name for name in names if name.startswith("norma ")]
    for kind, _, unit, more in METRICS:
        for mine in ours:
            for theirs in (name for name in names if name not in ours):
                table.setdefault(unit, {})[f"{mine} / {theirs}"] = ratios(results, mine, theirs, (kind, kind, more))
                if kind == "batch" and theirs.startswith("transformers"):
                    pair = f"{mine} / {theirs}, one adapter at a time"
                    table[unit][pair] = ratios(results, mine, theirs, ("batch", "decode", True))
    return table


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def show(args, results, names, table):
    print(f"\n{args.checkpoint.name}, {args.threads} threads, {args.rounds} rounds, {args.tokens} tokens an answer; "
          "medians\n")
    head = ["", "first token, ms", "tokens/s, 1", f"tokens/s, {BATCH}", "the same with prompts", "prefill rows/s"]
    rows = [head]
    for name in names:
        values = [results.median(name, kind) for kind in ("first_token", "decode", "batch", "batch_with_prompts",
                                                          "prefill")]
        if values[0] is not None:
            values[0] *= 1e3
        rows.append([name, *("–" if value is None else f"{value:.4g}" for value in values)])
    print_table(rows)
    print("\nNorma over each (above 1: Norma is ahead): median, [least, most] of the rounds\n")
    for unit, pairs in table.items():
        rows = [[f"  {pair}", "–" if r is None else f"{r['median']:.2f} [{r['min']:.2f}, {r['max']:.2f}]"]
                for pair, r in pairs.items()]
        if rows:
            print(unit)
            print_table(rows)
    print("\nThe first greedy tokens beside those of the first peer that loaded, as characters in common (not all "
          "crop, round and sum alike):")
    first = next(iter(results.greedy.values()), {})
    for name, texts in results.greedy.items():
        agree = [f"{kind} {len(os.path.commonprefix([first[kind], text]))} of {len(first[kind])}"
                 for kind, text in texts.items()]
        print(f"  {name}: {', '.join(agree)}")
    if results.reasons:
        print("\nNot measured:")
        for what, reason in results.reasons.items():
            print(f"  {what}: {reason}")


def print_table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells))


def machine():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    flags = next((v.split() for k, v in fields.items() if k.strip() == "flags"), [])
    model = next((v.strip() for k, v in fields.items() if k.strip() == "model name"), "unknown")
    wide = [flag for flag in flags if flag.startswith(("avx", "amx"))]
    return {"processor": model, "cpus": os.cpu_count(), "vector_flags": wide}


def words(choices):
    def parse(text):
        chosen = text.split(",")
        for word in chosen:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"`{word}` is none of {', '.join(choices)}")
        return chosen
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--norma", default="target/release/norma", help="the binary")
    parser.add_argument("--python", default=sys.executable, help="has mistralrs, xllamacpp, gguf, numpy, pillow")
    parser.add_argument("--transformers-python", help="has torch and transformers; --python by default")
    parser.add_argument("--peers", type=words(PEERS), default=list(PEERS))
    parser.add_argument("--weights", type=words(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="first tokens measured in each round")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--words", type=int, default=250, help="of the prompt without an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a task or a load")
    parser.add_argument("--reload", action="store_true", help="only one peer in memory at a time")
    parser.add_argument("--gguf", type=Path, help="where llama.cpp's files are kept; CHECKPOINT-gguf by default")
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    args.checkpoint = args.checkpoint.resolve()
    pixels = json.loads((args.checkpoint / "preprocessor_config.json").read_text())
    args.side = pixels["crop_size"]["height"]
    args.transformers_python = args.transformers_python or args.python
    args.gguf = (args.gguf or args.checkpoint.with_name(args.checkpoint.name + "-gguf")).resolve()
    # So that the peers are ended whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    folder = Path(tempfile.mkdtemp(prefix="norma-peers-"))
    results = Results()
    try:
        args.workers, results.reasons = workers(args, folder)
        try:
            measure(args, args.workers, results)
        finally:
            for worker in args.workers:
                worker.end()
        names = [worker.name for worker in args.workers if worker.name in results.samples]
        table = compare(results, names)
        show(args, results, names, table)
        if args.json:
            args.json.write_text(json.dumps({
                "checkpoint": args.checkpoint.name, "machine": machine(), "threads": args.threads,
                "rounds": args.rounds, "tokens": args.tokens, "peers": results.facts, "samples": results.samples,
                "ratios": table, "greedy": results.greedy, "not_measured": results.reasons,
            }, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
