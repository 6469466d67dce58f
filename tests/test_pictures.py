# SPDX-License-Identifier: Apache-2.0
"""Picture files as people have them: turned, transparent, thin, broken, or no pictures at all."""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from streaming.base.format.mds.encodings import PNG

from ahpa_scale.data import codec
from ahpa_scale.data.pictures.crop import center_crop
from ahpa_scale.data.pictures.decode import SUFFIXES, UnreadablePictureError, open_image
from ahpa_scale.data.sources import center_crop as crop_by_its_old_name
from ahpa_scale.data.sources import open_image as open_by_its_old_name

ORIENTATION = 0x0112
RED, BLUE = (200, 30, 30), (30, 30, 200)


def crop_whole(image: Image.Image, size: int) -> np.ndarray:
    """ADM's crop, which scales all of the picture before it cuts."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    scaled = (round(image.width * factor), round(image.height * factor))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(bits: int, kind: int, values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of the given depth and colour type, as no library writes it."""
    height, width = values.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        places = np.arange(bits)[::-1]
        rows = [np.packbits((row[..., None] >> places) & 1).tobytes() for row in values]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def test_the_old_names_still_lead_here():
    assert open_by_its_old_name is open_image
    assert crop_by_its_old_name is center_crop


@given(
    width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 40), seed=st.just(1)
)
@settings(max_examples=150, deadline=None)
def test_an_ordinary_picture_keeps_the_exact_pixels_of_adms_crop(width, height, size, seed):
    image = noise(height, width, seed)
    found, wanted = center_crop(image, size), crop_whole(image, size)
    if max(width, height) <= 16 * min(width, height):
        np.testing.assert_array_equal(found, wanted)
    else:
        assert np.abs(found.astype(int) - wanted).max() <= 1, "a strip: to rounding"


MEASURE = """
import resource, sys
from ahpa_scale.data.pictures.decode import read_square
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_square(*sys.argv[1:3], 256).shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (3, 60_000)])
def test_a_thin_picture_costs_little_memory(tmp_path, width, height):
    noise(height, width).save(tmp_path / "thin.png")
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "thin.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shape, megabytes = done.stdout.splitlines()
    assert shape == "(256, 256, 3)"
    assert int(megabytes) < 200


def turned(orientation: int) -> Image.Image:
    """What a camera held so stores of red left, blue right and a green foot."""
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[:, :32], shown[:, 32:], shown[40:] = RED, BLUE, (30, 200, 30)
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    undo |= {i: Image.Transpose(t) for i, t in ((2, 0), (3, 3), (4, 1), (5, 5), (7, 6))}
    image = Image.fromarray(shown)
    return image.transpose(undo[orientation]) if orientation in undo else image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_picture_is_turned_as_its_exif_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    turned(orientation).save(path, exif=exif, quality=95)
    image = open_image(path)
    assert image.size == (64, 48)
    for place, colour in (((5, 5), RED), ((60, 5), BLUE), ((5, 46), (30, 200, 30))):
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() < 30
    assert image.getexif().get(ORIENTATION) not in range(2, 9), "nobody is to turn it again"


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path, block):
    noise(16, 16).save(tmp_path / "odd.jpg", exif=block, quality=100)
    noise(16, 16).save(tmp_path / "odd.png", exif=block)
    for suffix in ("jpg", "png"):
        assert open_image(tmp_path / f"odd.{suffix}").size == (16, 16)


@pytest.mark.parametrize(
    ("bits", "grey"), [(1, 1), (2, 1), (2, 3), (4, 9), (8, 200), (16, 200), (16, 40_000)]
)
def test_the_grey_that_a_png_calls_transparent_is_white(tmp_path, bits, grey):
    values = np.zeros((8, 8), int)
    values[:, 4:] = grey
    (tmp_path / "grey.png").write_bytes(
        png(bits, 0, values, chunk(b"tRNS", struct.pack(">H", grey)))
    )
    image_HWC = np.asarray(open_image(tmp_path / "grey.png"))
    assert (image_HWC[:, 4:] == 255).all()
    assert (image_HWC[:, :4] == 0).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_the_colour_that_a_png_calls_transparent_is_white(tmp_path, bits):
    colour = (100, 20, 210) if bits == 8 else (1000, 2000, 40_000)
    values = np.zeros((8, 8, 3), int)
    values[:, 4:] = colour
    values[4:, 4:, 2] += 1  # the same in eight bits
    content = png(bits, 2, values, chunk(b"tRNS", struct.pack(">HHH", *colour)))
    (tmp_path / "colour.png").write_bytes(content)
    image_HWC = np.asarray(open_image(tmp_path / "colour.png"))
    assert (image_HWC[:4, 4:] == 255).all()
    np.testing.assert_array_equal(image_HWC[4:, 4:], values[4:, 4:] >> (bits - 8))


def test_cmyk_deep_and_animated_pictures_are_read(tmp_path):
    plain = Image.new("RGB", (32, 32), (200, 30, 120))
    plain.convert("CMYK").save(tmp_path / "ink.jpg", quality=100)
    deep = np.full((32, 32, 3), (200 << 8, 30 << 8, 120 << 8))
    (tmp_path / "deep.png").write_bytes(png(16, 2, deep))
    clear = np.concatenate([deep, np.full((32, 32, 1), 65535)], axis=2)
    (tmp_path / "clear.png").write_bytes(png(16, 6, clear))
    for suffix in ("png", "webp"):
        others = {"save_all": True, "append_images": [Image.new("RGB", (32, 32))]}
        plain.save(tmp_path / f"moving.{suffix}", **others, lossless=True)
    plain.save(tmp_path / "pair.jpg", format="MPO", save_all=True, append_images=[noise(32, 32)])
    for path in tmp_path.iterdir():
        image_HWC = np.asarray(open_image(path)).astype(int)
        assert image_HWC.shape == (32, 32, 3)
        assert np.abs(image_HWC - (200, 30, 120)).max() <= 2, path.name


def test_a_suffix_that_is_another_formats_is_no_matter(tmp_path):
    noise(8, 8).save(tmp_path / "really.jpg", format="PNG")
    np.testing.assert_array_equal(open_image(tmp_path / "really.jpg"), noise(8, 8))


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A program that Pillow takes for Ghostscript; the file that it leaves when it runs."""
    called = tmp_path / "called"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return called


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "PPM"])
def test_no_other_decoder_is_reached_by_a_wrong_name(tmp_path, ghostscript, kind, suffix):
    path = tmp_path / f"strange{suffix}"
    noise(8, 8).save(path, format=kind)
    with pytest.raises(
        UnreadablePictureError, match="it holds no AVIF, BMP, GIF, HEIC, JPEG, PNG, TIFF or WEBP"
    ):
        open_image(path)
    assert not ghostscript.exists()


def test_no_other_decoder_is_reached_from_a_shard(ghostscript):
    buffer = io.BytesIO()
    noise(8, 8).save(buffer, "EPS")
    found = PNG().decode(buffer.getvalue())  # as the streaming library opens a column
    with pytest.raises(ValueError, match="column image holds a picture in EPS, and not in PNG"):
        codec.decode("image", found, "float16")
    assert not ghostscript.exists()


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "empty.png").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
        listening.bind("socket.png")
        for name, reason in (
            ("pipe", "a named pipe"),
            ("folder", "a folder"),
            ("device", "a device"),
            ("socket", "a socket"),
            ("loop", "symbolic links"),
            ("gone", "No such file"),
            ("empty", "0 bytes"),
        ):
            with pytest.raises(UnreadablePictureError, match=reason) as caught:
                open_image(tmp_path / f"{name}.png")
            assert f"{name}.png: " in str(caught.value)


def rle_bomb() -> bytes:
    """A BMP of some hundred bytes whose deltas ask for gigabytes."""
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "BMP")
    head = bytearray(buffer.getvalue()[: 54 + 4 * 256])
    struct.pack_into("<ii", head, 18, 100_000_000, 1)
    struct.pack_into("<I", head, 30, 1)
    return bytes(head) + b"\0\2\xff\xff" * 100


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    flat = np.zeros((1, 1), int)
    bombs = {
        "wide.png": png(8, 0, flat).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)),
        ),
        "run.bmp": rle_bomb(),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadablePictureError, match=f"{name}: .*pixels"):
            open_image(tmp_path / name)
    with (tmp_path / "long.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBP")
        file.truncate(1 << 31)
    with pytest.raises(UnreadablePictureError, match="it has 2147483648 bytes"):
        open_image(tmp_path / "long.webp")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_error_of_the_machine_is_not_the_pictures(tmp_path, monkeypatch):
    noise(8, 8).save(tmp_path / "good.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            open_image(tmp_path / "good.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, UnreadablePictureError)

    def ours(_: Image.Image) -> Image.Image:
        raise TypeError("a fault of ours")

    monkeypatch.setattr("ahpa_scale.data.pictures.decode.on_white", ours)
    with pytest.raises(TypeError, match="a fault of ours"):
        open_image(tmp_path / "good.png")


def corpus() -> list[bytes]:
    """Small files of every format and mode."""
    pillow_heif.register_heif_opener()
    image, exif = noise(20, 24), Image.Exif()
    exif[ORIENTATION] = 6
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>6</tiff:Orientation>", zip=True)
    moving = {"save_all": True, "append_images": [image.rotate(90)]}
    ways: list[tuple[Image.Image, str, dict[str, object]]] = [
        (image, "PNG", {"exif": exif, "pnginfo": text, "icc_profile": b"x" * 200}),
        (image.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (image.convert("1"), "PNG", {"transparency": 1}),
        (image, "PNG", moving),
        (image, "JPEG", {"exif": exif}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "MPO", moving),
        (image, "WEBP", {"exif": exif}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image, "WEBP", moving),
        (image, "BMP", {}),
        (image, "GIF", {}),
        (image.convert("P"), "GIF", moving),
        (image, "TIFF", {"exif": exif}),
        (
            noise(20, 24),
            "TIFF",
            {"compression": "tiff_lzw", "save_all": True, "append_images": [noise(9, 9)]},
        ),
        (image.convert("CMYK"), "TIFF", {"compression": "jpeg"}),
        (image, "AVIF", {"exif": exif}),
        (image.convert("RGBA"), "AVIF", {}),
        (image, "HEIF", {}),
        (image.convert("P"), "BMP", {}),
    ]
    found = []
    for picture, kind, options in ways:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    runs = bytearray(found[-1])
    runs[30] = 1  # run-length encoded
    deep = png(16, 2, np.zeros((4, 4, 3), int), chunk(b"tRNS", bytes(6)))
    return [*found, bytes(runs), deep]


CORPUS = corpus()


def checked(content: bytearray) -> bytes:
    """With right checksums, where it is a PNG, so that damage gets past them."""
    place = 8
    while content[:4] == b"\x89PNG" and place + 12 <= len(content):
        end = place + 8 + struct.unpack_from(">I", content, place)[0]
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(content)


@given(
    which=st.integers(0, len(CORPUS) - 1),
    kept=st.one_of(st.none(), st.integers(0, 2000)),
    changes=st.lists(
        st.tuples(st.one_of(st.integers(0, 80), st.integers(0, 3000)), st.integers(0, 255)),
        max_size=8,
    ),
)
@settings(max_examples=800, deadline=None)
def test_damaged_files_are_pictures_or_named(tmp_path_factory, which, kept, changes):
    content = bytearray(CORPUS[which])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(checked(content)[:kept])
    with suppress(UnreadablePictureError):
        assert open_image(path).mode == "RGB"
