"""Writes `lntuning/`: 20 steps of PEFT's LN-tuning on `llava/llama_a`, the proof for a trainer.

Pinned: peft 0.21.2 besides what `tiny_llava.py` pins. Float32, CPU, one thread; a float64 twin gives the tolerance.
Command, from this folder, after `make_llava.py`: `OMP_NUM_THREADS=1 python make_lntuning.py`. What the files hold:
README.md.
"""

import re
import shutil

import peft
import torch
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers.utils import logging

import make_llava
import tiny_llava as tiny

OUT = tiny.HERE / "lntuning"
STEPS, LEARNING_RATE = 20, 1e-2
ADAM = dict(lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
NORM = r"(input_layernorm|post_attention_layernorm|layer_norm1|layer_norm2|pre_layrnorm|post_layernorm|norm)"
ALL_NORMS = rf".*\.{NORM}"
# With feature layer -2 of three tower layers, layers 0 and 1 are used; layer 2 and post_layernorm do nothing.
USED_NORMS = (r".*language_model\.(layers\.\d+\.(input_layernorm|post_attention_layernorm)|norm)"
              r"|.*vision_tower\.(encoder\.layers\.[01]\.layer_norm[12]|pre_layrnorm)")

EXAMPLES = [  # (image, question, answer); the first four are batch 0, the others batch 1
    ("wide.png", "Is the heart enlarged?", "No"),
    ("tall.png", "Which side is the lesion on?", "The right side"),
    ("square.png", "Is there an effusion?", "Yes, on the left"),
    ("wide.png", "What is the modality?", "Radiograph"),
    ("square.png", "What organ is shown?", "The lungs"),
    ("tall.png", "Is the lung clear?", "No"),
    ("square.png", "Describe the findings.", "A small effusion on the left side."),
    ("tall.png", "Size?", "5 µm"),
]


def encode_examples(processor):
    """Prompt as the template renders it, then a space, the answer and the end-of-text token; the loss sees those."""
    records = []
    for image, question, answer in EXAMPLES:
        messages = [make_llava.user(question, image)]
        prompt, ids, pixels = make_llava.encode(processor, messages, [tiny.open_image(image)])
        target = processor.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
        target.append(processor.tokenizer.eos_token_id)
        records.append(({"image": image, "question": question, "answer": answer, "prompt": prompt,
                         "input_ids": ids + target, "label_mask": [0] * len(ids) + [1] * len(target)}, pixels[0]))
    return records


def batch_of(records, dtype):
    """Right-padded ids, attention mask, pixels, and the label mask."""
    width = max(len(r["input_ids"]) for r, _ in records)

    def padded(key, filler):
        return torch.tensor([r[key] + [filler] * (width - len(r[key])) for r, _ in records])

    attention = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r, _ in records])
    pixels = torch.stack([p for _, p in records]).to(dtype)
    return padded("input_ids", 3), attention, pixels, padded("label_mask", 0)


def loss_of(model, batch):
    """Cross entropy summed over the answer tokens of the whole batch, by their number."""
    ids, attention, pixels, labels = batch
    logits = model(input_ids=ids, attention_mask=attention, pixel_values=pixels, use_cache=False).logits
    wanted = labels[:, 1:].bool()
    return torch.nn.functional.cross_entropy(logits[:, :-1][wanted], ids[:, 1:][wanted], reduction="sum") / wanted.sum()


def canonical(name):
    """Layout A's name of a PEFT parameter."""
    name = name.removeprefix("base_model.model.").replace(".ln_tuning_layers.default", "")
    return tiny.canonical_from_memory(name)


def tuned(dtype, targets):
    """A fresh base under PEFT, and its trainable values by canonical name."""
    base = make_llava.load(make_llava.OUT / "llama_a").to(dtype)
    model = get_peft_model(base, LNTuningConfig(target_modules=targets))
    trainable = {canonical(n): p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(re.search(NORM + r"\.(weight|bias)$", n) for n in trainable)
    return model, trainable


def train(dtype):
    """Losses before each step, gradients of step 0, values after step 1 and after the last, and the model."""
    records = encode_examples(processor_of_base())
    batches = [batch_of(records[:4], dtype), batch_of(records[4:], dtype)]
    model, trainable = tuned(dtype, USED_NORMS)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), **ADAM)
    losses, kept = [], {}
    for step in range(STEPS):
        loss = loss_of(model, batches[step % 2])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            kept.update({f"gradient_0.{n}": p.grad.clone() for n, p in trainable.items()})
        optimizer.step()
        if step in (0, STEPS - 1):
            kept.update({f"after_{step + 1}.{n}": p.detach().clone() for n, p in trainable.items()})
    unchanged = dict(model.named_parameters())
    assert all(torch.equal(unchanged[n], value) for n, value in frozen.items()), "a frozen value moved"
    with torch.no_grad():
        final = [loss_of(model, batch).item() for batch in batches]
    return model, [r for r, _ in records], losses, final, kept


def processor_of_base():
    """The prompt form of the base's folder."""
    return tiny.make_processor(
        make_llava.VISION["patch_size"], "default", tiny.LLAVA_TEMPLATE, make_llava.CLIP_32)


def norms_without_gradient():
    """Of all norms of the base, those that the loss does not reach."""
    model, trainable = tuned(torch.float32, ALL_NORMS)
    records = encode_examples(processor_of_base())
    loss_of(model, batch_of(records[:4], torch.float32)).backward()
    return len(trainable), sorted(n for n, p in trainable.items() if p.grad is None or not p.grad.any())


def main():
    tiny.check_versions()
    assert peft.__version__ == "0.21.2", peft.__version__
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()

    model, records, losses, final, kept = train(torch.float32)
    _, _, losses_64, final_64, kept_64 = train(torch.float64)
    everything, silent = norms_without_gradient()
    names = sorted(n.removeprefix("gradient_0.") for n in kept if n.startswith("gradient_0."))
    assert len(names) + len(silent) == everything and not set(names) & set(silent)

    start = load_file(make_llava.OUT / "llama_a" / "model.safetensors")
    moved = {n: float((kept[f"after_{STEPS}.{n}"] - start[n]).abs().min()) for n in names}
    assert min(moved.values()) > 0, "a value that should learn stands still"
    assert sum(final) < 0.8 * (losses[0] + losses[1]), "nothing was learnt"
    difference = {
        "loss": max(abs(a - b) for a, b in zip(losses + final, losses_64 + final_64)),
        **{kind: max(float((kept[k].double() - kept_64[k]).abs().max()) for k in kept if k.startswith(kind + "."))
           for kind in ("gradient_0", "after_1", f"after_{STEPS}")}}

    model.peft_config["default"].base_model_name_or_path = "llama_a"  # not a path of the machine that ran this
    model.save_pretrained(OUT / "peft")
    (OUT / "peft" / "README.md").unlink(missing_ok=True)
    reloaded = PeftModel.from_pretrained(make_llava.load(make_llava.OUT / "llama_a"), OUT / "peft").eval()
    first = records[0]
    ids = first["input_ids"][:first["label_mask"].index(1)]
    _, _, pixels = make_llava.encode(processor_of_base(), [make_llava.user(first["question"], "image")],
                                     [tiny.open_image(first["image"])])
    tokens, margin = make_llava.greedy(reloaded, ids, pixels)
    assert margin >= make_llava.MIN_MARGIN, margin
    kept["trained.logits"] = make_llava.forward(reloaded, ids, pixels).logits[0]
    assert torch.equal(kept["trained.logits"], make_llava.forward(model, ids, pixels).logits[0])

    tiny.write_tensors(OUT / "expected.safetensors", kept)
    tiny.write_json(OUT / "expected.json", {
        "about": "PEFT LN-tuning of llava/llama_a; step s uses batch s % 2",
        "versions": {**tiny.PINNED, "peft": "0.21.2"}, "base": "llama_a",
        "optimizer": {"name": "AdamW", **ADAM}, "steps": STEPS, "batches": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "examples": records, "losses": losses, "final_losses": final, "f32_vs_f64": difference,
        "trained_tensors": names, "tensors_without_gradient": silent, "least_movement": min(moved.values()),
        "trained": {"example": 0, "input_ids": ids, "greedy": tokens, "greedy_min_margin": round(margin, 6)}})
    print("losses", [round(x, 3) for x in losses], "then", [round(x, 3) for x in final])
    print("f32 against f64", difference, "silent", silent)


if __name__ == "__main__":
    main()
