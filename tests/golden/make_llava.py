"""Writes `llava/`: small random LLaVA checkpoints as people have them on disk, and what transformers answers on them.

Pinned: torch 2.12.1, transformers 5.23.0, tokenizers 0.23.3, pillow 13.0.0. Float32, CPU, one thread, eager attention.
Command, from this folder: `OMP_NUM_THREADS=1 python make_llava.py [case ...]` (no case: all of them).
What the files hold: README.md.
"""

import copy
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig)
from transformers.utils import logging

import tiny_llava as tiny

OUT = tiny.HERE / "llava"
STEPS = 32
MIN_MARGIN = 1e-3
CLIP_32 = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}

VISION = dict(hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, image_size=32,
              patch_size=8, projection_dim=32, layer_norm_eps=2e-3)
LLAMA = dict(hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, vocab_size=tiny.VOCAB,
             max_position_embeddings=256, rms_norm_eps=1e-3, pad_token_id=3, rope_parameters={
                 "rope_type": "default", "rope_theta": 500.0})


@dataclass
class Case:
    """One checkpoint: what to build, and what must change its logits (`without`: a part taken away)."""

    about: str
    vision: dict = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    llava: dict = field(default_factory=dict)
    text_class: type = LlamaConfig
    template: str = tiny.LLAVA_TEMPLATE
    image_options: dict = field(default_factory=lambda: CLIP_32)
    dtype: torch.dtype = torch.float32
    layout: str = "C"
    max_shard_size: str = "1GB"
    prompts: tuple = ("one_image",)
    without: tuple = ()


CASES = {
    "llama_a": Case(
        "Llama, multi-head attention, own head; layout A with the older configuration keys",
        vision={"num_hidden_layers": 3}, layout="A",
        prompts=("one_image", "text_only", "two_images", "two_turns", "ragged_0", "ragged_1", "ragged_2")),
    "gqa_tied": Case(
        "Mistral, 4 heads on 2 key-value heads of 16 (hidden 40), tied head, window of 8, gelu tower, "
        "resize to 36 and crop to 32, mean and std 0.5, beginning-of-text token in the template",
        vision={"hidden_act": "gelu"}, text_class=MistralConfig, template=tiny.INST_TEMPLATE,
        text=dict(hidden_size=40, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, sliding_window=8),
        image_options=dict(CLIP_32, size={"shortest_edge": 36}, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        prompts=("one_image", "two_turns"), without=("sliding_window", None)),
    "sharded": Case(
        "Llama in several shards with an index, float16; the class token stays (`full`)",
        llava={"vision_feature_select_strategy": "full"}, dtype=torch.float16, max_shard_size="32KB"),
    "bf16": Case("Llama saved in bfloat16; the reference computes in float32 from those values", dtype=torch.bfloat16),
    "rope_linear": Case(
        "Linear rope scaling in the older keys (`rope_theta`, `rope_scaling` with `type`), layout A, last tower layer; "
        "float16, as llava-hf folders are",
        text={"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}},
        llava={"vision_feature_layer": -1}, layout="A", dtype=torch.float16,
        without=("rope_parameters", {"rope_type": "default", "rope_theta": 500.0})),
    "rope_llama3": Case(
        "Llama 3 rope scaling as 5.23 writes it (`rope_parameters`); saved in float16",
        text={"rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 500.0}},
        dtype=torch.float16, without=("rope_parameters", {"rope_type": "default", "rope_theta": 500.0})),
    "biases": Case(
        "Biases in attention and MLP; two tower layers side by side (`vision_feature_layer: [-2, -1]`); bfloat16",
        text={"attention_bias": True, "mlp_bias": True}, llava={"vision_feature_layer": [-2, -1]},
        dtype=torch.bfloat16),
}
ALSO = {"llama_b": "B", "llama_c": "C", "llama_d": "D"}  # llama_a's weights in the other layouts


def user(question, *images):
    return {"role": "user", "content": [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]}


def says(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


PROMPTS = {  # name: (messages, image files in order)
    "one_image": ([user("Is the heart enlarged?", "wide")], ["wide.png"]),
    "text_only": ([says("system", "You read images."), user("What is a lesion?")], []),
    "two_images": ([user("Which one is clear?", "tall", "square")], ["tall.png", "square.png"]),
    "two_turns": ([user("Clear?", "tall"), says("assistant", "No."), user("Why — 5 µm?")], ["tall.png"]),
    "ragged_0": ([user("Which side?", "square")], ["square.png"]),
    "ragged_1": ([user("Hi")], []),
    "ragged_2": ([user("Describe the findings on the left side of the chest.", "wide")], ["wide.png"]),
}


def build(case, seed, folder):
    """A random checkpoint as `save_pretrained` and the processor write it (layout C)."""
    text = dict(LLAMA, **case.text)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**dict(VISION, **case.vision)), text_config=case.text_class(**text),
        image_token_index=tiny.IMAGE_TOKEN_ID, **dict({"vision_feature_layer": -2}, **case.llava))
    config.image_seq_length = 16 + (config.vision_feature_select_strategy == "full")
    model = LlavaForConditionalGeneration(config)
    tiny.fill_weights(model, seed)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.max_shard_size)
    processor = tiny.make_processor(
        VISION["patch_size"], config.vision_feature_select_strategy, case.template, case.image_options)
    processor.save_pretrained(folder)
    return processor


def load(folder, **options):
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options)
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def forward(model, ids, pixels, **more):
    return model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False, **more)


def greedy(model, ids, pixels):
    """32 tokens by full recomputation, never stopping, and the least distance of the two best logits."""
    tokens, margin = [], float("inf")
    for _ in range(STEPS):
        best = forward(model, ids + tokens, pixels).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if pixels is not None:
        inputs["pixel_values"] = pixels
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS)
    assert generated[0, len(ids):].tolist() == tokens or margin < MIN_MARGIN, "generate() with its cache differs"
    return tokens, margin


def encode(processor, messages, images):
    """The rendered prompt, its ids with the image token expanded, the pixels [images, 3, h, w]."""
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    starts = prompt.startswith(processor.tokenizer.bos_token)
    out = processor(text=prompt, images=images or None, return_tensors="pt", add_special_tokens=not starts)
    return prompt, out["input_ids"][0].tolist(), out.get("pixel_values")


def run_prompts(model, processor, names, images_of=tiny.open_image):
    """References of prompts: JSON records and tensors. None where a margin is too small to be a reference."""
    exact = copy.deepcopy(model).double()
    records, tensors = [], {}
    for name in names:
        messages, files = PROMPTS[name]
        prompt, ids, pixels = encode(processor, messages, [images_of(f) for f in files])
        tokens, margin = greedy(model, ids, pixels)
        if margin < MIN_MARGIN or len(set(tokens)) < 8 or {3, tiny.IMAGE_TOKEN_ID} & set(tokens):
            return None
        logits = forward(model, ids, pixels).logits[0]
        precise = forward(exact, ids, None if pixels is None else pixels.double()).logits[0]
        if pixels is not None:
            features = torch.stack(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)
            for at, file in enumerate(files):
                tensors[f"{Path(file).stem}.pixel_values"] = pixels[at]
                tensors[f"{Path(file).stem}.image_features"] = features[at]
            mirrored = forward(model, ids, pixels.flip(-1)).logits[0]
            assert (logits - mirrored).abs().max() > 0.1, "the picture does not matter"
        tensors[f"{name}.logits"] = logits
        records.append({
            "name": name, "messages": messages, "images": files, "prompt": prompt, "input_ids": ids, "greedy": tokens,
            "greedy_min_margin": round(margin, 6), "logits_f32_vs_f64": float((logits - precise).abs().max()),
            "greedy_text": processor.tokenizer.decode(tokens, skip_special_tokens=True,
                                                      clean_up_tokenization_spaces=False)})
    return records, tensors


@torch.no_grad()
def run_ragged(model, records, tensors):
    """The `ragged_*` prompts as one left-padded batch; their logits replace those of the rows alone."""
    rows = [r for r in records if r["name"].startswith("ragged_")]
    width = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([[3] * (width - len(r["input_ids"])) + r["input_ids"] for r in rows])
    mask = torch.tensor([[0] * (width - len(r["input_ids"])) + [1] * len(r["input_ids"]) for r in rows])
    pixels = torch.stack([tensors[f"{Path(f).stem}.pixel_values"] for r in rows for f in r["images"]])
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                   pixel_values=pixels, use_cache=False).logits
    worst = 0.0
    for row, record in enumerate(rows):
        batched = logits[row, width - len(record["input_ids"]):]
        alone = tensors[f"{record['name']}.logits"]
        worst = max(worst, float((batched - alone).abs().max()))
        tensors[f"{record['name']}.logits"] = batched
    assert worst < 1e-3, worst
    return {"rows": [r["name"] for r in rows], "padding_side": "left", "width": width, "batch_vs_alone": worst}


def legacy_folder(folder, template):
    """Turn what 5.23 saved into what a hub folder of the llava-hf kind looks like (layout A, older keys, only values
    that differ from the classes' defaults)."""
    weights = folder / "model.safetensors"
    tiny.write_tensors(weights, tiny.rename(load_file(weights), tiny.TO_A), {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for part, defaults in (("text_config", LlamaConfig()), ("vision_config", CLIPVisionConfig())):
        rope = config[part].pop("rope_parameters", None)
        config[part] = {k: v for k, v in config[part].items() if k == "model_type" or v != getattr(defaults, k, None)}
        if rope:
            config[part].pop("head_dim"), config[part].pop("num_key_value_heads")
            config[part]["rope_theta"] = rope["rope_theta"]
            if rope["rope_type"] != "default":
                config[part]["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    tiny.write_json(folder / "config.json", config)
    processor = json.loads((folder / "processor_config.json").read_text())
    tiny.write_json(folder / "preprocessor_config.json", dict(processor.pop("image_processor"),
                                                              processor_class="LlavaProcessor"))
    tiny.write_json(folder / "processor_config.json", processor)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    del tokenizer["backend"]
    tiny.write_json(folder / "tokenizer_config.json", tokenizer)
    tiny.write_json(folder / "chat_template.json", {"chat_template": template})


def header(name, about, layout, **more):
    return {"case": name, "about": about, "layout": layout, "versions": tiny.PINNED, **more}


def check_matters(case, folder, model, record, tensors):
    """The part the case is about must show in the logits."""
    key, value = case.without
    config = LlavaConfig.from_pretrained(folder)
    setattr(config.text_config, key, value)
    other = load(folder, config=config)
    pixels = torch.stack([tensors[f"{Path(f).stem}.pixel_values"] for f in record["images"]])
    logits = forward(other, record["input_ids"], pixels).logits[0]
    assert (logits - tensors[f"{record['name']}.logits"]).abs().max() > 0.05, f"{key} does not matter"


def check_folder(folder, record):
    """The folder as a user opens it gives the same prompt and ids, also in one call of `apply_chat_template`."""
    processor = AutoProcessor.from_pretrained(folder)
    images = [tiny.open_image(f) for f in record["images"]]
    prompt, ids, _ = encode(processor, record["messages"], images)
    assert (prompt, ids) == (record["prompt"], record["input_ids"])
    messages, waiting = copy.deepcopy(record["messages"]), iter(images)
    for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
        part["image"] = next(waiting)
    whole = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert whole["input_ids"][0] == ids


def make_case(name):
    case = CASES[name]
    for seed in range(1000):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            processor = build(case, seed, folder)
            if case.layout == "A":
                legacy_folder(folder, case.template)
            model = load(folder)
            found = run_prompts(model, processor, case.prompts)
            if found is None:
                continue
            records, tensors = found
            more = {}
            if "ragged_0" in case.prompts:
                more["ragged"] = run_ragged(model, records, tensors)
                hidden = forward(model, records[0]["input_ids"], tensors["wide.pixel_values"][None],
                                 output_hidden_states=True).hidden_states
                tensors["one_image.hidden_states"] = torch.cat(hidden)
            if case.without:
                check_matters(case, folder, model, records[0], tensors)
            for record in records:
                check_folder(folder, record)
            shutil.rmtree(OUT / name, ignore_errors=True)
            shutil.copytree(folder, OUT / name)
        break
    config = model.config
    tiny.write_tensors(OUT / f"{name}.safetensors", tensors)
    tiny.write_json(OUT / f"{name}.json", header(
        name, case.about, case.layout, seed=seed, weights_of=name, dtype=str(case.dtype).removeprefix("torch."),
        image_token_id=tiny.IMAGE_TOKEN_ID, image_tokens=config.image_seq_length, prompts=records, **more))
    print(name, "seed", seed, "margins", [r["greedy_min_margin"] for r in records],
          "f32-f64", max(r["logits_f32_vs_f64"] for r in records))


def copy_layouts():
    """llama_a's weights as B, C and D; C must be what 5.23 saves, and transformers must read B and C to the same
    logits (it refuses D)."""
    source = load_file(OUT / "llama_a" / "model.safetensors")
    reference = json.loads((OUT / "llama_a.json").read_text())
    tensors = load_file(OUT / "llama_a.safetensors")
    case = copy.copy(CASES["llama_a"])
    for name, layout in ALSO.items():
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        processor = build(case, reference["seed"], folder)
        saved = load_file(folder / "model.safetensors")
        renamed = tiny.rename(source, tiny.FROM_A[layout])
        if layout == "C":
            assert saved.keys() == renamed.keys() and all(torch.equal(saved[k], renamed[k]) for k in saved)
        else:
            tiny.write_tensors(folder / "model.safetensors", renamed, {"format": "pt"})
        if layout == "D":
            write_original(folder, reference["seed"], processor)
            continue
        if layout == "B":  # as folders of transformers 4.4x and 4.5x: template in JSON, image processor in its own file
            config = json.loads((folder / "processor_config.json").read_text())
            tiny.write_json(folder / "preprocessor_config.json", config.pop("image_processor"))
            tiny.write_json(folder / "processor_config.json", config)
            tiny.write_json(folder / "chat_template.json", {"chat_template": case.template})
            (folder / "chat_template.jinja").unlink()
        model = load(folder)
        first = reference["prompts"][0]
        check_folder(folder, first)
        logits = forward(model, first["input_ids"], tensors["wide.pixel_values"][None]).logits[0]
        assert torch.equal(logits, tensors["one_image.logits"]), "the layouts disagree"
        tiny.write_json(OUT / f"{name}.json", header(
            name, "llama_a's weights under other names; expected outputs: llama_a's", layout, weights_of="llama_a"))


def write_original(folder, seed, processor):
    """The folder of the original LLaVA code (layout D) with its own flat configuration, and the tower's configuration
    in `llama_d_vision`. This form renders prompts and pictures differently, so it has references of its own too."""
    hf = json.loads((folder / "config.json").read_text())
    text, vision = hf["text_config"], hf["vision_config"]
    for path in folder.iterdir():
        if path.name not in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    keys = ("attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range",
            "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
            "num_key_value_heads", "pad_token_id", "rms_norm_eps", "use_cache", "vocab_size")
    tiny.write_json(folder / "config.json", {
        "_name_or_path": "tiny/llama_d", "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama",
        **{k: text[k] for k in keys}, "rope_theta": 500.0, "rope_scaling": None, "tie_word_embeddings": False,
        "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad", "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "tiny/clip-vit-unknown", "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right", "torch_dtype": "float32", "transformers_version": "4.36.2",
        "tune_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": True, "use_mm_proj": True})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")
    tiny.write_json(folder / "tokenizer_config.json", {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 2048,
        "padding_side": "right", "tokenizer_class": "PreTrainedTokenizerFast"})
    beside = OUT / "llama_d_vision"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    tiny.write_json(beside / "config.json", dict(vision, architectures=["CLIPVisionModel"]))
    image = {k: v for k, v in processor.image_processor.to_dict().items() if not k.startswith("_")}
    tiny.write_json(beside / "preprocessor_config.json", image)

    # The same weights in transformers, asked in LLaVA-Med's words about a picture padded to a square.
    model = load(OUT / "llama_a")
    processor.chat_template = tiny.INST_TEMPLATE
    mean = processor.image_processor.image_mean
    found = run_prompts(model, processor, ("one_image", "two_turns"),
                        lambda file: tiny.pad_to_square(tiny.open_image(file), mean))
    assert found is not None, "choose another seed for llama_a"
    records, tensors = found
    tiny.write_tensors(OUT / "llama_d.safetensors", tensors)
    tiny.write_json(OUT / "llama_d.json", header(
        "llama_d", "llama_a's weights as the original LLaVA stores them; `[INST]` prompts, pictures padded to a square",
        "D", seed=seed, weights_of="llama_a", vision_config="llama_d_vision", dtype="float32",
        image_token_id=tiny.IMAGE_TOKEN_ID, image_tokens=16, prompts=records))


def main():
    tiny.check_versions()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    tiny.draw_images()
    wanted = sys.argv[1:] or [*CASES, "layouts"]
    for name in wanted:
        if name != "layouts":
            make_case(name)
    if "layouts" in wanted or "llama_a" in wanted:
        copy_layouts()


if __name__ == "__main__":
    main()
