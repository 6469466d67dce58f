# SPDX-License-Identifier: Apache-2.0
"""A folder of odd pictures: what becomes of each, and what is said in the end."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms
from test_pictures import ORIENTATION, chunk, crop_whole, noise, png, rle_bomb

from ahpa_scale import cli
from ahpa_scale.data.pictures import heic
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.sources import DecodeOptions, SourceOptions, StoredSource, open_source
from ahpa_scale.errors import UserError

SIZE = 16
COLOUR = (200, 30, 120)
PLAIN = Image.new("RGB", (32, 24), COLOUR)
MOVING = {"save_all": True, "append_images": [Image.new("RGB", (32, 24), (0, 90, 0))]}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    """Stored on its side: red above blue; shown, red is left."""
    image, exif = Image.new("RGB", (24, 32), (200, 0, 0)), Image.Exif()
    image.paste((0, 0, 200), (0, 16, 24, 32))
    exif[ORIENTATION] = 8
    return saved(image, "JPEG", exif=exif, quality=95)


def swapped_profile() -> bytes:
    """An ICC profile, of sRGB with the primaries of red and blue exchanged."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
    content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(content)


def heif(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=-1)
    return buffer.getvalue()


DEEP = np.full((24, 32, 3), [value * 257 for value in COLOUR])
CLEAR = np.concatenate([DEEP, np.full((24, 32, 1), 65535)], axis=2)

#: Pictures that are read, and come out in this one colour.
READ: dict[str, bytes] = {
    "plain.bmp": saved(PLAIN, "BMP"),
    "ink.jpg": saved(PLAIN.convert("CMYK"), "JPEG", quality=100),
    "ink.tif": saved(PLAIN.convert("CMYK"), "TIFF"),
    "deep.png": png(16, 2, DEEP),
    "deep-alpha.png": png(16, 6, CLEAR),
    "palette.png": saved(PLAIN.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "alpha.webp": saved(PLAIN.convert("RGBA"), "WEBP", lossless=True),
    "moving.gif": saved(PLAIN.convert("P", palette=Image.Palette.ADAPTIVE), "GIF", **MOVING),
    "moving.png": saved(PLAIN, "PNG", **MOVING),
    "moving.webp": saved(PLAIN, "WEBP", lossless=True, **MOVING),
    "pages.tiff": saved(PLAIN, "TIFF", compression="tiff_lzw", **MOVING),
    "camera.jpg": saved(PLAIN, "MPO", quality=100, **MOVING),
    "new.avif": saved(PLAIN, "AVIF", quality=100, subsampling="4:4:4"),
    "phone.heic": heif(PLAIN),
    "really-a-png.jpg": saved(PLAIN, "PNG"),
    "really-a-jpeg.PNG": saved(PLAIN, "JPEG", quality=100),
    "bild é猫\u200d.png": saved(PLAIN, "PNG"),
    "n" * 250 + ".png": saved(PLAIN, "PNG"),
    "srgb.png": saved(
        PLAIN, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "broken-profile.png": saved(PLAIN, "PNG", icc_profile=b"no profile" * 20),
    "broken-exif.jpg": saved(PLAIN, "JPEG", exif=b"Exif\0\0junk", quality=100),
}
#: Pictures that are rejected, with words of the reason.
REJECTED: dict[str, tuple[bytes, str]] = {
    "cut.jpg": (saved(noise(64, 64), "JPEG")[:900], "runcated"),
    "cut.png": (saved(noise(64, 64), "PNG")[:900], "runcated"),
    "cut.tif": (saved(noise(64, 64), "TIFF", compression="tiff_lzw")[:3000], ""),
    "cut.avif": (saved(noise(64, 64), "AVIF")[:500], ""),
    "empty.png": (b"", "0 bytes"),
    "page.webp": (b"<html>404</html>", "it holds no AVIF, BMP, GIF, HEIC"),
    "print.png": (saved(PLAIN, "EPS"), "it holds no AVIF"),
    "bomb.png": (
        saved(PLAIN, "PNG").replace(
            saved(PLAIN, "PNG")[8:33],
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 14, 1 << 14, 8, 2, 0, 0, 0)),
        ),
        "Image size",
    ),
    "bomb.bmp": (rle_bomb(), "pixels"),
    "float.tif": (saved(Image.new("F", (32, 24)), "TIFF"), "mode F"),
    "small.png": (saved(Image.new("RGB", (40, 7)), "PNG"), "its shorter side must have 8"),
}
NO_PICTURES = ("notes.txt", "movie.mp4", "Thumbs.db", ".hidden.png")


def build(root: Path, names: dict[str, bytes]) -> Path:
    for name, content in names.items():
        path = root / "thing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def odd(tmp_path) -> Path:
    """All of them, with a turned picture, links and files that are no pictures."""
    root = build(tmp_path / "odd", READ)
    build(root, {name: content for name, (content, _) in REJECTED.items()})
    build(root, {"turned.jpg": turned(), **dict.fromkeys(NO_PICTURES, b"x")})
    folder = root / "thing"
    (folder / "linked.png").symlink_to("deep.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "around").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    return root


def opened(root: Path, **decode: object) -> StoredSource:
    how = DecodeOptions(**{"least_side": 8, **decode})
    return open_source(str(root), SourceOptions(size=SIZE, decode=how))


def verdicts(source: StoredSource) -> tuple[dict[str, np.ndarray], dict[str, str], set[str]]:
    """Pictures that were read, reasons of the others, and those that had more frames."""
    images, reasons, firsts = {}, {}, set()
    for position in range(len(source)):
        name = source.name(position).removeprefix("thing/")
        try:
            picture = source.read(position)
        except UserError as error:
            reasons[name] = str(error)
            continue
        images[name] = picture.image_HWC
        firsts |= {name} if picture.is_first else set()
    return images, reasons, firsts


def test_every_odd_picture_gets_its_verdict(odd):
    images, reasons, firsts = verdicts(opened(odd))
    links = {"gone.png": "No such file", "loop.png": "symbolic links", "pipe.png": "a named pipe"}
    wanted = {name: words for name, (_, words) in REJECTED.items()} | links
    assert len(images) + len(reasons) >= 25
    assert images.keys() == {*READ, "linked.png", "turned.jpg"}
    assert reasons.keys() == wanted.keys()
    for name, words in wanted.items():
        assert words in reasons[name], reasons[name]
        assert "\n" not in reasons[name]
    for name in {*READ, "linked.png"}:
        assert np.abs(images[name].astype(int) - COLOUR).max() <= 3, name
    assert firsts == {"moving.gif", "moving.png", "moving.webp", "pages.tiff"}
    red, blue = images["turned.jpg"][8, 2], images["turned.jpg"][8, 13]
    assert red[0] > 150 > red[2], "turned, red is left"
    assert blue[2] > 150 > blue[0]


def test_what_was_skipped_is_listed_counted_and_said(odd, vae_path, tmp_path):
    told: list[str] = []
    options = {"size": SIZE, "vae_path": vae_path, "progress": False, "class_depth": 1}
    card = prepare(
        str(odd), str(tmp_path / "set"), tell=told.append, rejects=0.5, least_side=8, **options
    )
    assert card.num_samples == len(READ) + 2
    lines = (tmp_path / "set" / "rejects.jsonl").read_text().splitlines()
    names = {json.loads(line)["picture"].removeprefix("thing/") for line in lines}
    assert names == {*REJECTED, "gone.png", "loop.png", "pipe.png"}
    assert told[0].startswith(f"{len(names)} of {len(names) + card.num_samples} pictures cannot")
    assert told[1] == "4 pictures are animated or have several pages: the first is taken"
    assert told[2].startswith("not looked at: ")
    for kind in ("2 hidden", "1 .txt", "1 .mp4", "1 links to folders that are read already"):
        assert kind in told[2]
    assert "sides of at least 8" in card.source


def test_too_many_end_the_command_with_one_line(odd, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["prepare", str(odd), "--size", "32", "--out", str(tmp_path / "set"),
                  "--no-progress", "--rejects", "0.2", "--class-depth", "1"])  # fmt: skip
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "pictures cannot be read, and 20 % may be: thing/" in line
    assert sorted(os.listdir(tmp_path)) == ["odd"]


def adm(path: Path) -> np.ndarray:
    """The pixels that ADM's data set gives: Pillow's, neither turned nor colour-managed."""
    return crop_whole(Image.open(path).convert("RGB"), SIZE)


def test_without_exif_pictures_are_adms_to_the_bit(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    profile = swapped_profile()
    files = {
        "turned.jpg": saved(noise(50, 70), "JPEG", exif=exif),
        "grey.jpg": saved(noise(40, 30).convert("L"), "JPEG"),
        "ink.jpg": saved(noise(40, 30).convert("CMYK"), "JPEG"),
        "colours.png": saved(noise(90, 40), "PNG", icc_profile=profile),
    }
    root = build(tmp_path, files)
    plain, _, _ = verdicts(opened(root, exif=False))
    managed, _, _ = verdicts(opened(root))
    for name in files:
        np.testing.assert_array_equal(plain[name], adm(root / "thing" / name), name)
    for name in ("turned.jpg", "colours.png"):
        assert (managed[name] != plain[name]).any(), "else the switch would do nothing"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colours_of_a_profile_become_srgb(tmp_path, kind):
    profile = swapped_profile()
    content = saved(PLAIN, kind, icc_profile=profile, quality=100)
    root = build(tmp_path, {f"picture.{kind.lower()}": content})
    (image,) = verdicts(opened(root))[0].values()
    red, _, blue = image.astype(int).mean(axis=(0, 1))
    assert blue > red + 40, "red and blue are exchanged"


def test_heic_without_its_package_is_rejected_with_what_to_install(tmp_path, monkeypatch):
    root = build(tmp_path, {"phone.heic": heif(PLAIN)})
    monkeypatch.setattr(heic, "_registered", lambda: False)
    _, reasons, _ = verdicts(opened(root))
    assert "pip install 'ahpa-scale[heic]'" in reasons["phone.heic"]


@pytest.mark.parametrize("side", [7, 8, 33])
def test_a_least_side_is_that_of_the_file(tmp_path, side):
    root = build(tmp_path, {"a.png": saved(noise(side, 100), "PNG")})
    images, reasons, _ = verdicts(opened(root, least_side=8))
    assert bool(images) == (side >= 8) != bool(reasons)
