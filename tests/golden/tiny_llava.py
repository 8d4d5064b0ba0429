"""Small random LLaVA checkpoints: tokenizer, images, weights, and the four layouts of the same tensors.

What `make_llava.py` and `make_lntuning.py` share. Pinned: torch 2.12.1, transformers 5.23.0, tokenizers 0.23.3,
pillow 13.0.0 (`check_versions` refuses others, because names and files differ between versions).
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import PIL
import tokenizers
import torch
import transformers
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
PINNED = {"torch": "2.12.1", "transformers": "5.23.0", "tokenizers": "0.23.3", "pillow": "13.0.0"}

VOCAB = 300
IMAGE_TOKEN_ID = VOCAB - 1  # the last row, so that layout D's tokenizer can do without it
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]

SENTENCES = [
    "What organ is shown in this image? The image shows the chest.",
    "Is there a pleural effusion on the left? Yes, there is a small effusion on the left side.",
    "Which side is the lesion on? The lesion is on the right side of the lung.",
    "Is the heart enlarged? No, the heart is of normal size.",
    "Describe the findings. The lungs are clear and there is no pneumothorax.",
    "What is the modality? This is a frontal radiograph of the chest.",
]

# Images first, then text, with blocks on lines of their own: a renderer that forgets `trim_blocks`, `lstrip_blocks`,
# `.upper()` or the `generation` tag (which hub folders of LLaVA 1.5 have) gives another string.
LLAVA_TEMPLATE = """{% for message in messages %}
    {% if message['role'] != 'system' %}
        {{- message['role'].upper() + ': ' -}}
    {% endif %}
    {% for part in message['content'] | selectattr('type', 'equalto', 'image') %}
        {{- '<image>\\n' -}}
    {% endfor %}
    {% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
        {% if message['role'] == 'assistant' %}
            {% generation %}
            {{- part['text'] + ' ' -}}
            {% endgeneration %}
        {% else %}
            {{- part['text'] + ' ' -}}
        {% endif %}
    {% endfor %}
{% endfor %}
{% if add_generation_prompt %}
    {{- 'ASSISTANT:' -}}
{% endif %}
"""

# The beginning-of-text token stands in the template, so the tokenizer must not add a second one.
INST_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' }}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}
        {%- endfor %}
        {{- ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'][0]['text'] + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def check_versions():
    """Refuse to write goldens with other versions than the pinned ones."""
    have = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__, "pillow": PIL.__version__}
    if have != PINNED:
        raise SystemExit(f"these goldens are pinned to {PINNED}, this is {have}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def make_tokenizer(padding_side="left"):
    """A byte-level BPE of 295 tokens over SPECIAL, all bytes and a few merges; `<image>` is the last id."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=VOCAB - 1, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side=padding_side, extra_special_tokens={"image_token": "<image>"}, model_max_length=2048)
    assert len(tokenizer) == VOCAB and tokenizer.image_token_id == IMAGE_TOKEN_ID
    return tokenizer


def make_processor(patch_size, strategy, template, image_options):
    """The LLaVA processor on PIL's own resize (the torchvision one rounds differently)."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**image_options), tokenizer=make_tokenizer(), patch_size=patch_size,
        vision_feature_select_strategy=strategy, num_additional_image_tokens=1, chat_template=template)


def draw_images():
    """Write the prompts' pictures (procedural, no patient data) into `images/`."""
    folder = HERE / "images"
    folder.mkdir(exist_ok=True)
    square = Image.new("RGB", (40, 40), (12, 16, 24))
    pen = ImageDraw.Draw(square)
    pen.ellipse((4, 6, 18, 34), fill=(90, 96, 110))
    pen.ellipse((22, 6, 36, 34), fill=(96, 90, 100))
    pen.ellipse((26, 10, 32, 16), fill=(240, 200, 170))
    square.save(folder / "square.png", optimize=True)

    wide = Image.new("RGB", (61, 44))
    wide.putdata([(x * 4, y * 5, (x * y) % 256) for y in range(44) for x in range(61)])
    ImageDraw.Draw(wide).rectangle((40, 4, 52, 20), fill=(250, 30, 60))
    wide.save(folder / "wide.png", optimize=True)

    tall = Image.new("L", (37, 53))
    tall.putdata([int(127 + 120 * math.sin(x / 5.0) * math.cos(y / 7.0)) for y in range(53) for x in range(37)])
    ImageDraw.Draw(tall).line((3, 50, 33, 2), fill=255, width=3)
    tall.save(folder / "tall.png", optimize=True)


def open_image(name):
    """What transformers' `load_image` does to a file: orientation, then RGB."""
    return ImageOps.exif_transpose(Image.open(HERE / "images" / name)).convert("RGB")


def pad_to_square(image, mean):
    """LLaVA's `image_aspect_ratio: pad`: a square of the mean colour, the picture in its middle (rounded down)."""
    width, height = image.size
    side = max(width, height)
    colour = tuple(int(255 * m) for m in mean)
    if image.mode == "L":
        colour = sum(colour) // 3
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def fill_weights(model, seed):
    """Weights large enough that every part of the model shows in the logits; norms far from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if re.search(r"norm\d?\.weight$", name):
                value.copy_(1.0 + 0.3 * noise)
            elif "embed_tokens" in name or "class_embedding" in name:
                value.copy_(0.5 * noise)
            elif "patch_embedding" in name:
                value.copy_(0.1 * noise)
            else:
                value.copy_(0.3 * noise)


TO_A = [  # names of `save_pretrained` (layout C) -> layout A
    (r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
]
FROM_A = {
    "B": [(r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head"),
          (r"^vision_tower\.", "model.vision_tower."), (r"^multi_modal_projector", "model.multi_modal_projector")],
    "C": [(r"^vision_tower\.vision_model\.", "vision_tower.")],
    "D": [(r"^language_model\.model\.", "model."), (r"^language_model\.lm_head", "lm_head"),
          (r"^vision_tower\.", "model.vision_tower.vision_tower."),
          (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
          (r"^multi_modal_projector\.linear_2", "model.mm_projector.2")],
}


def rename(tensors, rules):
    """The same tensors under other names."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, target in rules:
            name, hits = re.subn(pattern, target, name)
            if hits:
                break
        renamed[name] = value
    assert len(renamed) == len(tensors)
    return renamed


def canonical_from_memory(name):
    """Layout A's name of a parameter of transformers 5.23's model in memory."""
    rules = [(r"^model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"),
             (r"^model\.vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
             (r"^model\.multi_modal_projector", "multi_modal_projector")]
    return next(iter(rename({name: None}, rules)))


def write_json(path, value):
    """Readable JSON with number lists on one line and a final newline."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+(-?\d[^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(path, tensors, metadata=None):
    """safetensors in name order, contiguous."""
    save_file({k: tensors[k].detach().contiguous() for k in sorted(tensors)}, str(path), metadata=metadata)


def to_tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))
