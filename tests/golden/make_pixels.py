"""Writes `pixels/`: small pictures in many file forms, and what CLIP's preprocessing makes of them before rescaling.

Pinned: pillow 13.0.0 (the reference), transformers 5.23.0 (checked to agree: `CLIPImageProcessorPil`).
Command, from this folder: `python make_pixels.py`. What the files hold: README.md.
"""

import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from transformers import CLIPImageProcessor, CLIPImageProcessorPil
from transformers.image_utils import load_image

import tiny_llava as tiny

OUT = tiny.HERE / "pixels"
MEAN = CLIPImageProcessorPil().image_mean
TRANSFORMERS_DIFFERS = ("grey_16bit", "rgb_colour_key")  # why: check_against_transformers


def picture(width, height, seed=0):
    """A colour picture without symmetry: waves, a disc, a bar, a little noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    waves = np.stack([128 + 100 * np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    image = Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.1, height * 0.1, width * 0.45, height * 0.4), fill=(250, 240, 20))
    pen.rectangle((width * 0.6, height * 0.7, width * 0.95, height * 0.8), fill=(5, 10, 200))
    return image


def alpha(width, height):
    """An alpha channel with all degrees of transparency."""
    return Image.fromarray((np.add.outer(np.arange(height) * 3, np.arange(width) * 5) % 256).astype(np.uint8))


def raw_png(path, samples, bits, colour_type):
    """A PNG that PIL cannot write (16-bit colour, 4-bit grey), from rows of packed big-endian samples."""
    height, width = samples.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        rows = [bytes((row[0::2] << 4 | row[1::2]).astype(np.uint8)) for row in samples]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9)) + chunk(b"IEND", b""))


def write_pictures():
    def png(name, image, **options):
        image.save(OUT / f"{name}.png", optimize=True, **options)

    def jpeg(name, image, **options):
        image.save(OUT / f"{name}.jpg", **options)

    tall = picture(37, 53)
    png("rgb_tall", tall)
    png("rgb_wide", picture(90, 31, 1))
    png("rgb_large", picture(160, 121, 2))
    png("rgb_tiny", picture(5, 7, 3))
    png("rgb_pixel", Image.new("RGB", (1, 1), (200, 100, 50)))
    png("rgb_exact", picture(28, 28, 4))
    png("rgb_exact_width", picture(28, 40, 5))
    few = tall.quantize(8).convert("RGB")
    png("rgb_colour_key", few, transparency=few.getpixel((0, 0)))
    exif = Image.Exif()
    exif[0x0112] = 6
    png("rgb_exif_6", picture(24, 17, 6), exif=exif)
    png("grey", tall.convert("L"))
    png("grey_wide", picture(90, 20, 7).convert("L"))
    png("grey_1bit", picture(40, 33, 8).convert("1"))
    raw_png(OUT / "grey_4bit.png", np.array(picture(30, 33, 9).convert("L")) >> 4, 4, 0)
    high = np.array(tall.convert("L")).astype(np.uint16)
    png("grey_16bit", Image.fromarray(high * 256 + high[::-1]))
    raw_png(OUT / "rgb_16bit.png", (np.array(picture(29, 31, 10)).astype(np.uint32) * 251 + 77).astype(np.uint16)
            .reshape(31, 29, 3), 16, 2)
    png("palette", tall.quantize(16))
    png("palette_alpha", tall.quantize(16), transparency=bytes(range(0, 256, 16)))
    rgba, grey_alpha = tall.copy(), tall.convert("L")
    rgba.putalpha(alpha(37, 53))
    grey_alpha.putalpha(alpha(37, 53))
    png("rgba", rgba)
    png("grey_alpha", grey_alpha)

    jpeg("jpeg_444", tall, quality=92, subsampling=0)
    jpeg("jpeg_420", picture(61, 44, 11), quality=85, subsampling=2)
    jpeg("jpeg_progressive", tall, quality=90, subsampling=0, progressive=True)
    jpeg("jpeg_grey", picture(50, 33, 12).convert("L"), quality=90)
    jpeg("jpeg_cmyk", tall.convert("CMYK"), quality=95)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        jpeg(f"jpeg_exif_{orientation}", picture(24, 17, 6), quality=95, subsampling=0, exif=exif)


def upright(path):
    """The picture as it should be seen, still in its own mode; 16-bit grey loses its low byte (value // 256)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    return image


def clip(image, edge, crop):
    """Shortest edge to `edge` (the longer one truncated), antialiased bicubic; then the middle `crop` (h, w)."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(edge * long / short)
    image = image.resize((edge, longer) if width <= height else (longer, edge), Image.Resampling.BICUBIC)
    top, left = (image.height - crop[0]) // 2, (image.width - crop[1]) // 2
    return np.array(image)[top:top + crop[0], left:left + crop[1]]


def check_against_transformers(path, rgb, edge, crop, mine):
    """transformers' PIL processor gives the same bytes. Returns how far its torchvision twin is off.

    Two exceptions. 16-bit grey: PIL's own `convert("RGB")` clips every value above 255 to white, so transformers is
    handed the picture already scaled. A PNG with a transparent colour (`tRNS` on RGB): `convert("RGB")` keeps a note
    of that colour and transformers then paints it white, although it drops every other kind of transparency on this
    path; dropped here.
    """
    options = dict(size={"shortest_edge": edge}, crop_size={"height": crop[0], "width": crop[1]}, do_rescale=False,
                   do_normalize=False)
    image = load_image(str(path))
    if path.stem in TRANSFORMERS_DIFFERS:
        theirs = CLIPImageProcessorPil(**options)(image, return_tensors="np").pixel_values[0]
        assert not np.array_equal(theirs.transpose(1, 2, 0), mine), f"{path.name} is no exception any more"
        image = Image.fromarray(np.array(rgb))
    theirs = CLIPImageProcessorPil(**options)(image, return_tensors="np").pixel_values[0]
    assert np.array_equal(theirs.transpose(1, 2, 0), mine), path.name
    other = CLIPImageProcessor(**options)(image, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy()
    return int(np.abs(other.astype(int) - mine.astype(int)).max())


def main():
    tiny.check_versions()
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    write_pictures()
    cases, tensors, twin = [], {}, 0
    for path in sorted(OUT.iterdir()):
        mode = Image.open(path).mode
        image = upright(path)
        rgb = image.convert("RGB")
        jobs = [("crop", 28, (28, 28))]
        if path.stem in ("rgb_tall", "grey_wide", "jpeg_420"):
            jobs.append(("crop", 56, (56, 56)))
        if path.stem in ("rgb_wide", "rgb_large", "jpeg_444"):
            jobs += [("crop", 35, (28, 28)), ("crop", 31, (20, 27))]
        if path.stem in ("rgb_tall", "rgb_wide", "rgb_exact", "rgb_exact_width", "rgb_exif_6", "grey", "grey_wide",
                         "rgba", "palette", "jpeg_444", "jpeg_grey"):
            jobs.append(("pad", 28, (28, 28)))
        if rgb.width * rgb.height < 4096:
            jobs.append(("upright", None, None))
        for variant, edge, crop in jobs:
            if variant == "upright":
                name, result = f"{path.stem}.upright", np.array(rgb)
                agrees = "agrees" if np.array_equal(np.array(load_image(str(path))), result) else "differs"
                assert agrees == "agrees" or path.stem == "grey_16bit", path.name
            elif variant == "crop":
                name, result = f"{path.stem}.crop_{edge}_{crop[0]}x{crop[1]}", clip(rgb, edge, crop)
                twin = max(twin, check_against_transformers(path, rgb, edge, crop, result))
                agrees = "differs" if path.stem in TRANSFORMERS_DIFFERS else "agrees"
            else:
                square = tiny.pad_to_square(image if image.mode == "L" else rgb, MEAN)
                name, result = f"{path.stem}.pad_{edge}", clip(square.convert("RGB"), edge, crop)
                agrees = "has no such step"
            assert result.dtype == np.uint8 and name not in tensors
            tensors[name] = tiny.to_tensor(result)
            cases.append({"name": name, "file": path.name, "mode": mode, "variant": variant, "shortest_edge": edge,
                          "crop": crop, "shape": result.shape,
                          "transformers": agrees})
    # Not constant, not black: each expectation says something (the one-pixel picture is constant by nature).
    assert all(t.float().std() > 5 for n, t in tensors.items() if not n.startswith("rgb_pixel"))
    upright_sets = [tensors[f"jpeg_exif_{o}.upright"] for o in range(1, 9)]
    assert upright_sets[0].shape == (17, 24, 3) and upright_sets[5].shape == (24, 17, 3)
    tiny.write_tensors(OUT / "expected.safetensors", tensors)
    tiny.write_json(OUT / "expected.json", {
        "versions": tiny.PINNED, "mean": MEAN, "pad_colour": [int(255 * m) for m in MEAN], "pad_grey": 114,
        "torchvision_backend_max_difference": twin, "cases": cases})
    print(len(cases), "cases; the torchvision processor differs by up to", twin)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
