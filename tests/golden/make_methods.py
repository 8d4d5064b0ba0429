"""Writes `methods/`: some steps of LoRA, IA3, prefix tuning, BitFit, FFN, attention and full tuning on `llava/llama_a`.

LoRA, IA3 and prefix tuning are PEFT's, the others are torch's with `requires_grad` on the named parameters.
Pinned: as `make_lntuning.py`. Float32, CPU, one thread; a float64 twin gives the tolerance.
Command, from this folder, after `make_lntuning.py`: `OMP_NUM_THREADS=1 python make_methods.py`. What the files hold:
README.md.
"""

import re
import shutil
from dataclasses import dataclass, field

import peft
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from transformers.utils import logging

import make_llava
import make_lntuning as ln
import tiny_llava as tiny

OUT = tiny.HERE / "methods"
STEPS = 10
SEED = 11
LANGUAGE = r".*language_model\.layers\.\d+"
TOWER = r".*vision_tower\.encoder\.layers\.[01]"  # layer 2 is above the selected one
NOISE = r"^vision_tower.*k_proj\.bias$"  # the softmax takes it away: its gradient is rounding
KEPT_VALUES = 64  # of each tensor, the first so many are written


def both(language, tower):
    return rf"{LANGUAGE}\.({language})|{TOWER}\.({tower})"


@dataclass
class Method:
    """How the base becomes trainable: a PEFT configuration, or a pattern over canonical parameter names."""

    rate: float
    peft: object = None
    pattern: str = None
    options: dict = field(default_factory=dict)


LINEARS = r"(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)"
USED = r"(language_model\.|multi_modal_projector\.|vision_tower\.vision_model\.(embeddings\.|pre_layrnorm|encoder\.layers\.[01]\.))"
METHODS = {
    "lora": Method(1e-2, lambda: LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=both(r"self_attn\.[qv]_proj", r"self_attn\.[qv]_proj"))),
    "ia3": Method(1e-2, lambda: IA3Config(
        target_modules=both(r"self_attn\.[kv]_proj|mlp\.down_proj", r"self_attn\.[kv]_proj|mlp\.fc2"),
        feedforward_modules=both(r"mlp\.down_proj", r"mlp\.fc2"))),
    "prefix": Method(1e-2, lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "bias": Method(1e-2, pattern=rf"^(?={USED}).*bias$"),
    "ffn": Method(1e-3, pattern=rf"^(?={USED}).*\.mlp\.{LINEARS}\.(weight|bias)$"),
    "attention": Method(1e-3, pattern=rf"^(?={USED}).*\.self_attn\.{LINEARS}\.(weight|bias)$"),
    "full": Method(1e-3, pattern=rf"^{USED}"),
    "layernorm_gain": Method(1e-2, pattern=rf"^(?={USED}).*norm\d?\.weight$"),
}


def canonical(name):
    """Layout A's name of a trained parameter."""
    name = name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "")
    return tiny.canonical_from_memory(name)


def split_prefix(weight):
    """PEFT's one embedding as keys and values of each layer, `[tokens, width]`."""
    layers = make_llava.LLAMA["num_hidden_layers"]
    parts = weight.detach().chunk(2 * layers, dim=1)
    name = "language_model.model.layers.{}.self_attn.prefix_{}".format
    return {name(i // 2, "keys" if i % 2 == 0 else "values"): part.clone() for i, part in enumerate(parts)}


def values(trainable):
    """What is trained, by canonical name."""
    if list(trainable) == ["prompt_encoder.embedding.weight"]:
        return split_prefix(trainable["prompt_encoder.embedding.weight"])
    return {name: p.detach().clone().squeeze() for name, p in trainable.items()}


def prepare(method, dtype):
    """The model, and its trainable parameters by canonical name."""
    base = make_llava.load(make_llava.OUT / "llama_a").to(dtype)
    torch.manual_seed(SEED)
    if method.peft is not None:
        model = get_peft_model(base, method.peft())
        for p in model.parameters():
            if p.requires_grad:  # PEFT draws in float32, whatever the base is
                p.data = p.data.to(dtype)
        trainable = {canonical(n): p for n, p in model.named_parameters() if p.requires_grad}
    else:
        model, trainable = base, {}
        for name, p in model.named_parameters():
            p.requires_grad_(bool(re.search(method.pattern, canonical(name))))
            if p.requires_grad:
                trainable[canonical(name)] = p
    assert trainable
    return model, trainable


def train(method, dtype):
    """Losses before each step, losses of both batches afterwards, values before and after."""
    records = ln.encode_examples(ln.processor_of_base())
    batches = [ln.batch_of(records[:4], dtype), ln.batch_of(records[4:], dtype)]
    model, trainable = prepare(method, dtype)
    start = values(trainable)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), **{**ln.ADAM, "lr": method.rate})
    losses = []
    for step in range(STEPS):
        loss = ln.loss_of(model, batches[step % 2])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    unchanged = dict(model.named_parameters())
    assert all(torch.equal(unchanged[n], value) for n, value in frozen.items()), "a frozen value moved"
    with torch.no_grad():
        final = [ln.loss_of(model, batch).item() for batch in batches]
    return losses, final, start, values(trainable)


def main():
    tiny.check_versions()
    assert peft.__version__ == "0.21.2", peft.__version__
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    kept, written = {}, {}
    for name, method in METHODS.items():
        losses, final, start, end = train(method, torch.float32)
        losses_64, final_64, _, end_64 = train(method, torch.float64)
        if method.peft is not None:
            kept.update({f"{name}.start.{n}": v for n, v in start.items()})
        kept.update({f"{name}.end.{n}": v.flatten()[:KEPT_VALUES] for n, v in end.items()})
        off = max(abs(a - b) / abs(b) for a, b in zip(losses + final, losses_64 + final_64))
        moved = {n: float((end[n].double() - end_64[n]).abs().max()) for n in end if not re.search(NOISE, n)}
        assert sum(final) < losses[0] + losses[1], "nothing was learnt"
        written[name] = {
            "rate": method.rate, "losses": losses, "final_losses": final, "loss_f32_vs_f64": off,
            "value_f32_vs_f64": max(moved.values()), "n_trained": sum(v.numel() for v in end.values()),
            "trained_tensors": sorted(end)}
        print(name, written[name]["n_trained"], [round(x, 3) for x in losses], "then", [round(x, 3) for x in final],
              "f32 vs f64", off, max(moved, key=moved.get), max(moved.values()))
    tiny.write_tensors(OUT / "expected.safetensors", kept)
    tiny.write_json(OUT / "expected.json", {
        "about": "examples and batches are those of lntuning/; step s uses batch s % 2",
        "versions": {**tiny.PINNED, "peft": "0.21.2"}, "base": "llama_a", "steps": STEPS,
        "optimizer": {"name": "AdamW", **{k: v for k, v in ln.ADAM.items() if k != "lr"}}, "methods": written})


if __name__ == "__main__":
    main()
