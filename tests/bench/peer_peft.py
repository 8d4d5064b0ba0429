"""PEFT's LN-tuning on torch's CPU in f32, as a worker of `tune_peers.py`: JSON lines in, JSON lines out.

Arguments: JSON with `checkpoint`, `threads`, `rate`. A task is a list of examples (`pixels`, a file of f32; `side`;
`ids`; `answer`, where the answer starts) and a number of steps; every task begins at the base's own values with a new
AdamW, so that losses of all tasks can be compared. Several examples of a step are run one after another and their
gradients added: the loss is the mean over all answer tokens, and memory is that of one.
"""

import json
import os
import sys
import time
import traceback

import numpy as np
import peft
import torch
import transformers
from peft import LNTuningConfig, get_peft_model
from transformers import LlavaForConditionalGeneration


def used_norms(config):
    """The norms that the answer depends on, as a regular expression over transformers 5's names."""
    layers, selected = config.vision_config.num_hidden_layers, config.vision_feature_layer
    used = selected if selected >= 0 else layers + 1 + selected
    tower = "|".join(map(str, range(used)))
    return (r".*language_model\.(layers\.\d+\.(input_layernorm|post_attention_layernorm)|norm)"
            rf"|.*vision_tower\.(.*\.)?(encoder\.layers\.({tower})\.layer_norm[12]|pre_layrnorm)")


def peak_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024


class Tuner:
    """The model under PEFT, and the values that it starts from."""

    def __init__(self, options):
        torch.set_num_threads(options["threads"])
        base = LlavaForConditionalGeneration.from_pretrained(options["checkpoint"], dtype=torch.float32)
        self.model = get_peft_model(base, LNTuningConfig(target_modules=used_norms(base.config)))
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]
        self.rate = options["rate"]

    def facts(self):
        return {"version": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
                "attention": self.model.config._attn_implementation, "loaded_bytes": peak_bytes(),
                "trainable": sum(p.numel() for p in self.trained)}

    def run(self, task):
        with torch.no_grad():
            for value, start in zip(self.trained, self.start):
                value.copy_(start)
        optimizer = torch.optim.AdamW(self.trained, lr=self.rate, weight_decay=0.0)
        examples = [self.example(one) for one in task["examples"]]
        answers = sum((labels != -100).sum().item() for *_, labels in examples)
        losses, seconds = [], []
        for _ in range(task["steps"]):
            begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for ids, pixels, labels in examples:
                # transformers' own loss: the mean over an example's answer tokens.
                loss = self.model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
                loss = loss * ((labels != -100).sum().item() / answers)
                loss.backward()
                total += loss.item()
            optimizer.step()
            seconds.append(time.perf_counter() - begun)
            losses.append(total)
        return {"losses": losses, "seconds": seconds, "peak_bytes": peak_bytes()}

    @staticmethod
    def example(one):
        side = one["side"]
        pixels = torch.from_numpy(np.fromfile(one["pixels"], dtype="<f4").reshape(1, 3, side, side))
        ids = torch.tensor([one["ids"]])
        labels = ids.clone()
        labels[:, :one["answer"]] = -100
        return ids, pixels, labels


def main():
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        tuner = Tuner(json.loads(sys.argv[1]))
        print(json.dumps({"ok": tuner.facts()}), file=out)
        for line in sys.stdin:
            print(json.dumps({"ok": tuner.run(json.loads(line))}), file=out)
    except BaseException as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), file=out)


if __name__ == "__main__":
    main()
