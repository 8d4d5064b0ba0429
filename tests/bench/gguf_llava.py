"""Writes a checkpoint of `random_llava.py` (layout `llava`) as llama.cpp reads it: text model and mmproj.

    python tests/bench/gguf_llava.py CHECKPOINT OUT {f32,bf16,q8_0}

Tensors go from the mapped checkpoint to the file one by one. Needs numpy and gguf.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = {"f32": Type.F32, "bf16": Type.BF16, "q8_0": Type.Q8_0}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16,
              "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


class Checkpoint:
    """The tensors of a folder's safetensors, f32 when asked for."""

    def __init__(self, folder):
        self.found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self.found[name] = (path, 8 + length + entry["data_offsets"][0], entry)

    def tensor(self, name):
        path, offset, entry = self.found[name]
        kind = {"F32": "<f4", "BF16": "<u2"}[entry["dtype"]]
        raw = np.memmap(path, kind, "r", offset, tuple(entry["shape"]))
        return raw if kind == "<f4" else (raw.astype(np.uint32) << 16).view(np.float32)


def rows_paired(weight, heads):
    """llama.cpp rotates neighbouring rows of a head; checkpoints pair a row with the one half a head away."""
    outputs, inputs = weight.shape
    return weight.reshape(heads, 2, outputs // heads // 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def text_tensors(text):
    """(llama.cpp's name, checkpoint's name, heads whose rows are paired or None)."""
    decoder = "language_model.model"
    yield "token_embd.weight", f"{decoder}.embed_tokens.weight", None
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    for layer in range(text["num_hidden_layers"]):
        to, at = f"blk.{layer}", f"{decoder}.layers.{layer}"
        yield f"{to}.attn_norm.weight", f"{at}.input_layernorm.weight", None
        yield f"{to}.attn_q.weight", f"{at}.self_attn.q_proj.weight", heads
        yield f"{to}.attn_k.weight", f"{at}.self_attn.k_proj.weight", kv_heads
        yield f"{to}.attn_v.weight", f"{at}.self_attn.v_proj.weight", None
        yield f"{to}.attn_output.weight", f"{at}.self_attn.o_proj.weight", None
        yield f"{to}.ffn_norm.weight", f"{at}.post_attention_layernorm.weight", None
        for proj in ("gate", "up", "down"):
            yield f"{to}.ffn_{proj}.weight", f"{at}.mlp.{proj}_proj.weight", None
    yield "output_norm.weight", f"{decoder}.norm.weight", None
    yield "output.weight", "language_model.lm_head.weight", None


def vision_tensors(vision):
    at = "vision_tower.vision_model"
    yield "v.class_embd", f"{at}.embeddings.class_embedding", None
    yield "v.patch_embd.weight", f"{at}.embeddings.patch_embedding.weight", None
    yield "v.position_embd.weight", f"{at}.embeddings.position_embedding.weight", None
    # Not `post_layernorm`: where it is there, llama.cpp applies it, and LLaVA does not.
    pairs = [("pre_ln", "pre_layrnorm")]
    for layer in range(vision["num_hidden_layers"]):
        to, block = f"blk.{layer}", f"encoder.layers.{layer}"
        pairs += [(f"{to}.ln1", f"{block}.layer_norm1"), (f"{to}.ln2", f"{block}.layer_norm2"),
                  (f"{to}.ffn_up", f"{block}.mlp.fc1"), (f"{to}.ffn_down", f"{block}.mlp.fc2")]
        pairs += [(f"{to}.attn_{short}", f"{block}.self_attn.{proj}_proj")
                  for short, proj in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out"))]
    for to, name in pairs:
        for part in ("weight", "bias"):
            yield f"v.{to}.{part}", f"{at}.{name}.{part}", None
    for to, name in (("mm.0", "linear_1"), ("mm.2", "linear_2")):
        for part in ("weight", "bias"):
            yield f"{to}.{part}", f"multi_modal_projector.{name}.{part}", None


def type_of(name, shape, kind):
    """Matrices have the file's type; norms, biases, positions and the patch convolution stay f32."""
    is_matrix = len(shape) == 2 and name != "v.position_embd.weight"
    return kind if is_matrix else Type.F32


def write_tensors(writer, checkpoint, tensors, kind):
    tensors = list(tensors)
    for to, name, _ in tensors:
        shape = tuple(checkpoint.found[name][2]["shape"])
        own = type_of(to, shape, kind)
        block, n_bytes = gguf.GGML_QUANT_SIZES[own]
        row = shape[-1] // block * n_bytes
        total = int(np.prod(shape[:-1], dtype=np.int64)) * row
        if own == Type.F32:
            writer.add_tensor_info(to, shape, np.dtype(np.float32), total)
        else:
            writer.add_tensor_info(to, (*shape[:-1], row), np.dtype(np.uint8), total, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for to, name, heads in tensors:
        value = checkpoint.tensor(name)
        if heads is not None:
            value = rows_paired(value, heads)
        own = type_of(to, value.shape, kind)
        value = np.ascontiguousarray(value, np.float32)
        writer.write_tensor_data(value if own == Type.F32 else gguf.quants.quantize(value, own))
    writer.close()


def write_text(folder, path, kind):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(text["head_dim"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_file_type(FILE_TYPES[kind])
    by_id = {at: token for token, at in tokenizer["model"]["vocab"].items()}
    tokens = [by_id[at] for at in range(len(by_id))]
    special = {added["id"] for added in tokenizer["added_tokens"]}
    types = [gguf.TokenType.CONTROL if at in special else gguf.TokenType.NORMAL for at in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(tokenizer["model"]["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(True)
    write_tensors(writer, Checkpoint(folder), text_tensors(text), TYPES[kind])


def write_vision(folder, path, kind):
    config = json.loads((folder / "config.json").read_text())
    vision, pixels = config["vision_config"], json.loads((folder / "preprocessor_config.json").read_text())
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    # llama.cpp's LLaVA leaves out the last layer, as the checkpoint's `vision_feature_layer` of -2 wants.
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(pixels["image_mean"])
    writer.add_vision_image_std(pixels["image_std"])
    writer.add_vision_use_gelu(False)
    write_tensors(writer, Checkpoint(folder), vision_tensors(vision), TYPES[kind])


def write(folder, out, kind):
    """Writes both files, unless they are there, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / f"text-{kind}.gguf", out / f"mmproj-{kind}.gguf"
    for path, writes in zip(paths, (write_text, write_vision)):
        if not path.exists():
            partial = path.with_suffix(".partial")
            writes(folder, partial, kind)
            partial.rename(path)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=TYPES)
    args = parser.parse_args()
    for path in write(args.checkpoint, args.out, args.kind):
        print(path)


if __name__ == "__main__":
    main()
