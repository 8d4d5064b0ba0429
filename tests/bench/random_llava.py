"""Writes a randomly initialised LLaVA checkpoint for benchmarks: a size's name and a folder in, files out.

    python tests/bench/random_llava.py 150m /tmp/llava-150m
    python tests/bench/random_llava.py --list

The folder is what a user would have on disk: config.json, safetensors (one file or shards), tokenizer.json,
processor and chat template. Values depend on the seed, the tensor's name and nothing else, and are drawn so
that variance neither grows nor dies on the way to the logits. The head's rows of special and single-byte tokens
are zero: greedy answers then neither end early nor break inside a character, so that answers have a fixed length
with programs that cannot be told to ignore the end of text. Tensors are written one after another and never held
together, so that a 7B checkpoint takes little memory to make. Needs numpy only.
"""

import argparse
import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

BOS, EOS, UNK, PAD, IMAGE = "<s>", "</s>", "<unk>", "<pad>", "<image>"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# One line for each turn, the picture before the words.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: {{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Tower:
    """A CLIP vision transformer."""

    width: int
    layers: int
    heads: int
    mlp: int
    patch: int
    image: int

    @property
    def image_tokens(self):
        return (self.image // self.patch) ** 2


@dataclass(frozen=True)
class Size:
    """One checkpoint. `layout`: `llava` (Hugging Face's) or `llava_mistral` (LLaVA-Med's original)."""

    tower: Tower
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    dtype: str
    layout: str = "llava"
    shard_bytes: int = 5 << 30

    @property
    def head_dim(self):
        return self.width // self.heads


BASE_16 = Tower(width=768, layers=12, heads=12, mlp=3072, patch=16, image=224)
LARGE_14 = Tower(width=1024, layers=24, heads=16, mlp=4096, patch=14, image=336)
SMALL = Size(BASE_16, width=768, layers=12, heads=12, kv_heads=12, mlp=2048, vocab=8192, dtype="f32")
SEVEN = Size(LARGE_14, width=4096, layers=32, heads=32, kv_heads=8, mlp=14336, vocab=32000, dtype="bf16",
             layout="llava_mistral")

SIZES = {
    # A few hundred kilobytes, to try scripts with.
    "tiny": Size(Tower(64, 2, 2, 128, 8, 32), 64, 2, 2, 2, 128, 512, "f32"),
    # 184.5 M parameters, 196 image tokens.
    "150m": SMALL,
    # The same decoder behind 576 image tokens.
    "150m-576": replace(SMALL, tower=replace(BASE_16, patch=14, image=336)),
    # A decoder of 1.1 B behind OpenAI's large CLIP.
    "1b": Size(LARGE_14, width=2048, layers=22, heads=32, kv_heads=4, mlp=5632, vocab=32000, dtype="bf16"),
    # LLaVA-Med v1.5's shape and files.
    "7b": SEVEN,
    # Its files at a sixteenth of its size, to try scripts with: the tower is as large, because its configuration
    # is not in the folder but known by its name.
    "7b-small": replace(SEVEN, width=1024, layers=4, heads=8, kv_heads=2, mlp=3584, shard_bytes=256 << 20),
}


# --- tensors ------------------------------------------------------------------------------------------------------

def tensors(size):
    """Names, shapes and scales of all tensors, in the order in which they are written."""
    yield from tower_tensors(size)
    tower, width = size.tower, size.width
    names = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
    if size.layout == "llava_mistral":
        names = ("model.mm_projector.0", "model.mm_projector.2")
    for name, inputs in zip(names, (tower.width, width)):
        yield from linear(name, width, inputs, bias=True)
    decoder, head = "language_model.model", "language_model.lm_head"
    if size.layout == "llava_mistral":
        decoder, head = "model", "lm_head"
    kv = size.kv_heads * size.head_dim
    yield f"{decoder}.embed_tokens.weight", (size.vocab, width), 1.0
    for layer in range(size.layers):
        at = f"{decoder}.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,), None
        for proj, outputs in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            yield from linear(f"{at}.self_attn.{proj}_proj", outputs, width)
        yield f"{at}.post_attention_layernorm.weight", (width,), None
        yield from linear(f"{at}.mlp.gate_proj", size.mlp, width)
        yield from linear(f"{at}.mlp.up_proj", size.mlp, width)
        yield from linear(f"{at}.mlp.down_proj", width, size.mlp)
    yield f"{decoder}.norm.weight", (width,), None
    yield from linear(head, size.vocab, width)


def tower_tensors(size):
    tower = size.tower
    at = "vision_tower.vision_model"
    if size.layout == "llava_mistral":
        at = "model.vision_tower.vision_tower.vision_model"
    yield f"{at}.embeddings.class_embedding", (tower.width,), 1.0
    patch = (tower.width, 3, tower.patch, tower.patch)
    yield f"{at}.embeddings.patch_embedding.weight", patch, 1 / math.sqrt(3 * tower.patch**2)
    yield f"{at}.embeddings.position_embedding.weight", (tower.image_tokens + 1, tower.width), 0.5
    yield from layer_norm(f"{at}.pre_layrnorm", tower.width)
    for layer in range(tower.layers):
        block = f"{at}.encoder.layers.{layer}"
        yield from layer_norm(f"{block}.layer_norm1", tower.width)
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{block}.self_attn.{proj}", tower.width, tower.width, bias=True)
        yield from layer_norm(f"{block}.layer_norm2", tower.width)
        yield from linear(f"{block}.mlp.fc1", tower.mlp, tower.width, bias=True)
        yield from linear(f"{block}.mlp.fc2", tower.width, tower.mlp, bias=True)
    yield from layer_norm(f"{at}.post_layernorm", tower.width)


def linear(name, outputs, inputs, bias=False):
    yield f"{name}.weight", (outputs, inputs), 1 / math.sqrt(inputs)
    if bias:
        yield f"{name}.bias", (outputs,), 0.02


def layer_norm(name, width):
    yield f"{name}.weight", (width,), None
    yield f"{name}.bias", (width,), 0.02


PIECE = 1 << 22  # values drawn at once


N_PLAIN = 4 + 256  # special tokens and single bytes, which come first in the vocabulary


def values(seed, name, shape, scale):
    """The tensor's values in pieces of f32: uniform of deviation `scale`, around 1 where it is None (a norm's gain)."""
    if name.endswith("lm_head.weight"):
        vocab, width = shape
        yield np.zeros(N_PLAIN * width, np.float32)
        yield from values(seed, f"{name}/words", (vocab - N_PLAIN - 1, width), scale)
        yield np.zeros(width, np.float32)  # `<image>`
        return
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))
    centre, deviation = (1.0, 0.1) if scale is None else (0.0, scale)
    step = np.float32(deviation * math.sqrt(3) / 32768)
    left = math.prod(shape)
    while left:
        count = min(left, PIECE)
        drawn = random.integers(-32768, 32768, count, dtype=np.int16).astype(np.float32)
        yield drawn * step + np.float32(centre)
        left -= count


def encoded(piece, dtype):
    """Little-endian bytes, bf16 rounded to nearest."""
    if dtype == "f32":
        return piece.astype("<f4").tobytes()
    bits = piece.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_weights(folder, size, seed):
    """safetensors; returns the number of parameters."""
    width = {"f32": 4, "bf16": 2}[size.dtype]
    shards, filled = [[]], 0
    for tensor in tensors(size):
        n_bytes = math.prod(tensor[1]) * width
        if shards[-1] and filled + n_bytes > size.shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += n_bytes
    weight_map = {}
    for index, shard in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update({name: file for name, _, _ in shard})
        write_shard(folder / file, shard, size.dtype, seed)
    parameters = sum(math.prod(shape) for _, shape, _ in tensors(size))
    if len(shards) > 1:
        index = {"metadata": {"total_size": parameters * width}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    return parameters


def write_shard(path, shard, dtype, seed):
    width = {"f32": 4, "bf16": 2}[dtype]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in shard:
        end = at + math.prod(shape) * width
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, scale in shard:
            for piece in values(seed, name, shape, scale):
                file.write(encoded(piece, dtype))


# --- everything but weights ---------------------------------------------------------------------------------------

def byte_alphabet():
    """The printable character that stands for each byte in byte-level BPE, GPT-2's table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def vocabulary(n_tokens):
    """Tokens by id and merges: special ones, all bytes, then pairs and pairs of pairs of letters. `<image>` is last."""
    tokens = [UNK, BOS, EOS, PAD, *byte_alphabet().values()]
    merges = []

    def merge(left, right):
        if len(tokens) < n_tokens - 1:
            merges.append((left, right))
            tokens.append(left + right)

    letters = "etaoinshrdlucmfwygpbvkxqjz"
    for letter in letters:
        merge("\u0120", letter)
    pairs = [a + b for a in letters for b in letters]
    for pair in pairs:
        merge(*pair)
    for left in pairs:
        for right in pairs:
            merge(left, right)
    return [*tokens, IMAGE], merges


def write_tokenizer(folder, size):
    tokens, merges = vocabulary(size.vocab)
    assert len(tokens) == size.vocab == len(set(tokens))
    special = {token: tokens.index(token) for token in (UNK, BOS, EOS, PAD, IMAGE)}
    added = [{"id": at, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for token, at in special.items()]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: at for at, token in enumerate(tokens)}, "merges": [" ".join(m) for m in merges]},
    })
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": UNK,
              "pad_token": PAD, "padding_side": "left", "model_max_length": 4096, "clean_up_tokenization_spaces": False,
              "add_bos_token": False}
    if size.layout == "llava":
        config |= {"image_token": IMAGE, "extra_special_tokens": {"image_token": IMAGE}, "chat_template": TEMPLATE}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json",
               {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD})


def text_config(size):
    return {
        "model_type": "llama", "hidden_size": size.width, "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": size.vocab, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "use_flash_attn": False,
    }


def vision_config(tower):
    return {
        "model_type": "clip_vision_model", "hidden_size": tower.width, "intermediate_size": tower.mlp,
        "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads, "num_channels": 3,
        "image_size": tower.image, "patch_size": tower.patch, "projection_dim": tower.width,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }


def write_llava(folder, size):
    """Hugging Face's files beside the weights."""
    tower, dtype = size.tower, {"f32": "float32", "bf16": "bfloat16"}[size.dtype]
    write_json(folder / "config.json", {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "torch_dtype": dtype,
        "image_token_index": size.vocab - 1, "image_seq_length": tower.image_tokens, "ignore_index": -100,
        "pad_token_id": 3, "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
        "vocab_size": size.vocab, "text_config": text_config(size), "vision_config": vision_config(tower),
    })
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": tower.image}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": tower.image, "width": tower.image}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    })
    write_json(folder / "processor_config.json", {
        "processor_class": "LlavaProcessor", "image_token": IMAGE, "num_additional_image_tokens": 1,
        "patch_size": tower.patch, "vision_feature_select_strategy": "default",
    })
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3})


def write_original(folder, size):
    """LLaVA-Med's: a flat configuration, no processor, no template, the tower known by its name."""
    text = text_config(size)
    text |= {
        "architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral", "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6, "image_aspect_ratio": "pad",
        "mm_hidden_size": size.tower.width, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "use_mm_proj": True,
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048,
    }
    for field in ("mlp_bias", "use_flash_attn"):
        del text[field]
    write_json(folder / "config.json", text)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write(folder, size, seed=0):
    """Writes the checkpoint and returns its number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, size)
    (write_original if size.layout == "llava_mistral" else write_llava)(folder, size)
    return write_weights(folder, size, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", choices=SIZES)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["f32", "bf16"], help="of the tensors; the size's own by default")
    parser.add_argument("--list", action="store_true", help="print the sizes and end")
    args = parser.parse_args()
    if args.list:
        for name, size in SIZES.items():
            count = sum(math.prod(shape) for _, shape, _ in tensors(size))
            print(f"{name:9} {count / 1e6:9.1f} M parameters, {size.tower.image_tokens} image tokens, "
                  f"{size.dtype}, {size.layout}")
        return
    if args.folder is None:
        parser.error("a size and a folder are needed")
    size = SIZES[args.size]
    if args.dtype:
        size = replace(size, dtype=args.dtype)
    count = write(args.folder, size, args.seed)
    print(f"{args.folder}: {count / 1e6:.1f} M parameters, {size.dtype}", file=sys.stderr)


if __name__ == "__main__":
    main()
