"""Norma's LN-tuning beside PEFT's on one machine: one run, in turns, the same checkpoint, threads and examples.

    python tests/bench/tune_peers.py CHECKPOINT --norma-train target/release/norma-train --json out.json

CHECKPOINT is a folder written by `random_llava.py` (`150m-576`). Python needs torch, transformers, peft and numpy. Both
learn the same norms, those that the answer depends on, with AdamW from the same values on the same pixels and token
rows. PEFT is one process, stopped (SIGSTOP) while Norma computes; Norma is a process a measurement, so that every peak
of memory is its own. See README.md here for what is measured.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from peers import Failed, Worker, machine, print_table, say

HERE = Path(__file__).resolve().parent
# Tokens of question and answer of one image's questions: eleven, as SLAKE's images have on average.
MIX = [(18, 2), (22, 2), (16, 3), (25, 2), (19, 4), (21, 2), (17, 3), (24, 5), (20, 2), (23, 3), (18, 6)]
RATE = 1e-3
TARGETS = {"one question: step time, f32 / PEFT": 0.75, "one question: memory, bf16 / PEFT": 0.5,
           "eleven questions: time a question, f32 / PEFT": 0.25}
LOSSES = 1e-4


def draw(config, folder, seed):
    """One image's pixels in a file, and token rows with the place of each answer."""
    random = np.random.default_rng(seed)
    vision = config["vision_config"]
    side, patch = vision["image_size"], vision["patch_size"]
    path = folder / f"pixels-{seed}.f32"
    random.normal(0.0, 0.8, 3 * side * side).astype("<f4").tofile(path)
    image = [config["image_token_index"]] * (side // patch) ** 2
    words = config["text_config"]["vocab_size"]
    words = np.array([word for word in range(4, words) if word != config["image_token_index"]])
    head = random.choice(words, 4).tolist()
    sequences = []
    for prompt, answer in MIX:
        tokens = random.choice(words, prompt + answer).tolist()
        sequences.append((head + image + tokens, len(head) + len(image) + prompt))
    return {"pixels": path, "side": side, "sequences": sequences}


class Bench:
    """The two programs."""

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.config = json.loads((args.checkpoint / "config.json").read_text())

    def norma(self, drawn, weights, questions, extra=()):
        """Steps in a process of its own."""
        examples = self.folder / "examples.json"
        examples.write_text(json.dumps([{"pixels": drawn["pixels"].name, "sequences": drawn["sequences"][:questions]}]))
        command = [str(self.args.norma_train), "step", "--base", str(self.args.checkpoint), "--weights", weights,
                   "--examples", str(examples), "--image-token", str(self.config["image_token_index"]),
                   "--steps", str(self.args.steps), "--rate", str(RATE), "--json", *extra]
        environment = os.environ | {"RAYON_NUM_THREADS": str(self.args.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=self.pin)
        if done.returncode:
            raise Failed(done.stderr.strip()[-300:])
        return json.loads(done.stdout)

    def pin(self):
        """Only so many processors as there are threads: the trainer uses all that it sees."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:self.args.threads])

    def peft(self, worker, drawn, questions, steps):
        rows = drawn["sequences"][:questions]
        examples = [{"pixels": str(drawn["pixels"]), "side": drawn["side"], "ids": ids, "answer": answer}
                    for ids, answer in rows]
        return worker.run({"examples": examples, "steps": steps}, self.args.timeout)

    def start(self):
        options = {"checkpoint": str(self.args.checkpoint), "threads": self.args.threads, "rate": RATE}
        command = [sys.executable, str(HERE / "peer_peft.py"), json.dumps(options)]
        worker = Worker("peft", command, self.folder / "peft.log")
        return worker, worker.start(self.args.timeout)


def apart(ours, theirs):
    """The largest relative difference of two lists of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


def run(args, folder):
    bench = Bench(args, folder)
    worker, facts = bench.start()
    say(f"PEFT: {facts['version']}, {facts['trainable']} values learn")
    variants = [("f32", ()), ("bf16", ())] + [(weights, ()) for weights in args.also]
    variants += [("bf16", ("--checkpoint-layers",))] if args.checkpoint_layers else []
    rounds = []
    try:
        for index in range(args.rounds):
            one = {"drawn": args.seed + index}
            drawn = draw(bench.config, folder, one["drawn"])
            turns = [lambda: one.update(peft=bench.peft(worker, drawn, 1, args.steps))]
            for weights, extra in variants:
                name = " ".join((weights, *(word.strip("-") for word in extra)))
                turns.append(lambda weights=weights, extra=extra, name=name:
                             one.update({name: bench.norma(drawn, weights, 1, extra)}))
            turns.append(lambda: one.update(eleven_f32=bench.norma(drawn, "f32", len(MIX))))
            # Every other round begins at the other end. PEFT's eleven come last, because they may take more memory.
            for turn in turns if index % 2 == 0 else turns[::-1]:
                turn()
            one["peft_eleven"] = bench.peft(worker, drawn, len(MIX), 1)
            rounds.append(one)
            say(f"round {index + 1} of {args.rounds}: PEFT {min(one['peft']['seconds']):.3f} s a step, Norma f32 "
                f"{min(one['f32']['seconds']):.3f} s")
    finally:
        worker.end()
    return facts, rounds


def evaluate(rounds):
    """Ratios (Norma over PEFT) by name: one a round."""
    def time_of(one, name):
        return min(one[name]["seconds"])

    # PEFT's peak grows with what it was asked last; the first round's is that of one question alone.
    memory = rounds[0]["peft"]["peak_bytes"]
    ratios = {
        "one question: step time, f32 / PEFT": [time_of(one, "f32") / time_of(one, "peft") for one in rounds],
        "one question: memory, bf16 / PEFT": [one["bf16"]["peak_bytes"] / memory for one in rounds],
        "one question: memory, f32 / PEFT": [one["f32"]["peak_bytes"] / memory for one in rounds],
        "eleven questions: time a question, f32 / PEFT":
            [time_of(one, "eleven_f32") / time_of(one, "peft_eleven") for one in rounds],
    }
    for name in rounds[0]:
        if name not in ("drawn", "peft", "peft_eleven", "f32", "eleven_f32"):
            ratios[f"one question: step time, {name} / PEFT"] = [time_of(one, name) / time_of(one, "peft")
                                                                  for one in rounds]
            ratios[f"one question: memory, {name} / PEFT"] = [one[name]["peak_bytes"] / memory for one in rounds]
    losses = {"one question": max(apart(one["f32"]["losses"], one["peft"]["losses"]) for one in rounds),
              "eleven questions": max(apart(one["eleven_f32"]["losses"], one["peft_eleven"]["losses"])
                                      for one in rounds)}
    return ratios, losses


def show(args, facts, rounds, ratios, losses):
    print(f"\n{args.checkpoint.name}, {args.threads} threads, {args.rounds} rounds of {args.steps} steps, the fastest of "
          f"each\n{facts['version']}\n")
    table = [["", "s a step", "GiB at most", "first loss"]]
    for name in rounds[0]:
        if name != "drawn":
            seconds = median(min(one[name]["seconds"]) for one in rounds)
            peak = rounds[0][name]["peak_bytes"] / 2**30
            table.append([name, f"{seconds:.3f}", f"{peak:.2f}", f"{rounds[0][name]['losses'][0]:.5f}"])
    print_table(table)
    print("\nNorma over PEFT (below 1: Norma is ahead): median, [least, most] of the rounds\n")
    table = []
    for name, values in ratios.items():
        row = [name, f"{median(values):.3f} [{min(values):.3f}, {max(values):.3f}]", ""]
        if name in TARGETS:
            held = median(values) <= TARGETS[name]
            row[2] = f"{'within' if held else 'NOT within'} {TARGETS[name]}"
        table.append(row)
    print_table(table)
    for name, value in losses.items():
        print(f"losses, {name}: {value:.1e} apart at most, {'within' if value <= LOSSES else 'NOT within'} {LOSSES}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--norma-train", type=Path, default=Path("target/release/norma-train"), help="the binary")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of every measurement")
    parser.add_argument("--also", type=lambda text: text.split(","), default=[], help="further types, bf16-dot,int8")
    parser.add_argument("--checkpoint-layers", action="store_true", help="measures that too, with bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for a task or a load")
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    args = parser.parse_args()
    args.checkpoint, args.norma_train = args.checkpoint.resolve(), args.norma_train.resolve()
    # So that PEFT is ended whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    folder = Path(tempfile.mkdtemp(prefix="norma-tune-peers-"))
    try:
        facts, rounds = run(args, folder)
    except Failed as reason:
        sys.exit(f"failed: {reason}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratios, losses = evaluate(rounds)
    show(args, facts, rounds, ratios, losses)
    if args.json:
        args.json.write_text(json.dumps({
            "checkpoint": args.checkpoint.name, "machine": machine(), "threads": args.threads, "steps": args.steps,
            "peft": facts, "rounds": rounds, "ratios": ratios, "losses_apart": losses,
        }, indent=1) + "\n")
    if max(losses.values()) > LOSSES:
        sys.exit("the losses do not agree: times and memory say nothing")


if __name__ == "__main__":
    main()
