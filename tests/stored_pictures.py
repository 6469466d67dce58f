# SPDX-License-Identifier: Apache-2.0
"""The same encoded pictures in every kind of source."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streaming import MDSWriter

from ahpa_scale.data.sources import FolderSource, SourceOptions, StoredSource, open_source
from ahpa_scale.errors import UserError

SIZE = 16
CLASSES = ("ant", "bee", "cow")
ORIENTATION = 0x0112


def encoded(number: int) -> tuple[str, bytes]:
    """Ending and bytes of a picture; some are turned by EXIF, some transparent, some grey."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (*rng.integers(12, 40, 2), 3), dtype=np.uint8))
    ending = ("png", "jpg", "webp")[number % 3]
    image = image.convert(("RGB", "L", "RGBA")[number // 3 % 3 if ending == "png" else 0])
    exif = Image.Exif()
    exif[ORIENTATION] = 1 + number % 8
    content = io.BytesIO()
    image.save(content, {"jpg": "JPEG"}.get(ending, ending.upper()), exif=exif)
    return ending, content.getvalue()


def save_folder(root: Path, count: int) -> list[tuple[str, str, bytes]]:
    """Class folders; class, name and bytes of each picture in a folder's own order."""
    told = []
    for number in range(count):
        ending, content = encoded(number)
        told.append((CLASSES[number % 3], f"{number:05d}.{ending}", content))
    for name, file, content in told:
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted(told)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member to a tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def save_tars(root: Path, pictures: list[tuple[str, str, bytes]], shards: int = 3) -> str:
    """WebDataset tars with `.cls` members of class names; the source's name."""
    root.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(root / f"train-{shard:03d}.tar", "w") as tar:
            for position in range(
                shard * len(pictures) // shards, (shard + 1) * len(pictures) // shards
            ):
                label, file, content = pictures[position]
                stem, _, ending = file.partition(".")
                add(tar, f"{stem}.{ending}", content)
                add(tar, f"{stem}.cls", label.encode())
    return f"{root}/train-{{000..{shards - 1:03d}}}.tar"


def rows(pictures: list[tuple[str, str, bytes]]) -> Any:
    """A `datasets.Dataset` of them."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    table = {
        "image": [{"bytes": content, "path": None} for *_, content in pictures],
        "label": [CLASSES.index(label) for label, *_ in pictures],
    }
    return datasets.Dataset.from_dict(table, features=features)


def save_saved(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    rows(pictures).save_to_disk(root / "saved", max_shard_size="100KB")
    return str(root / "saved")


def save_parquet(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    half, folder = len(pictures) // 2, root / "data"
    folder.mkdir(parents=True)
    for number, part in enumerate((pictures[:half], pictures[half:])):
        rows(part).to_parquet(str(folder / f"train-{number:05d}-of-00002.parquet"))
    return f"{folder}/*.parquet"


def save_named(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    save_parquet(root, pictures)
    return f"hf:{root}:train"


def save_mds(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    columns = {"label": "str", "image": "bytes", "number": "int"}
    with MDSWriter(out=str(root), columns=columns, size_limit="20kb") as writer:
        for number, (label, _, content) in enumerate(pictures):
            writer.write({"label": label, "image": content, "number": number})
    return str(root)


def save_npz(root: Path, pictures: list[tuple[str, str, bytes]], folder: Path, size: int) -> str:
    """Pixels, cropped: an array has no pictures of several sizes."""
    root.mkdir(parents=True)
    source = FolderSource(str(folder), size=size)
    pixels = {source.name(p): source.read(p).image_HWC for p in range(len(source))}
    images = np.stack([pixels[f"{label}/{file}"] for label, file, _ in pictures])
    np.savez(root / "pictures.npz", images=images, labels=[label for label, *_ in pictures])
    return str(root / "pictures.npz")


def save_metadata(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    """One folder of all files, with Hugging Face's metadata.csv."""
    root.mkdir(parents=True)
    lines = ["file_name,label"]
    for label, file, content in pictures:
        (root / file).write_bytes(content)
        lines.append(f"{file},{label}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(root)


def save_deep(root: Path, pictures: list[tuple[str, str, bytes]]) -> str:
    for label, file, content in pictures:
        path = root / "all" / label / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def save_all(root: Path, count: int, size: int) -> dict[str, str]:
    """The same pictures as each kind of source: its name by the kind."""
    folder = root / "folder"
    pictures = save_folder(folder, count)
    kinds: dict[str, Callable[[Path], str]] = {
        "tar": lambda room: save_tars(room, pictures),
        "saved": lambda room: save_saved(room, pictures),
        "parquet": lambda room: save_parquet(room, pictures),
        "hf": lambda room: save_named(room, pictures),
        "mds": lambda room: save_mds(room, pictures),
        "npz": lambda room: save_npz(room, pictures, folder, size),
        "metadata": lambda room: save_metadata(room, pictures),
        "deep": lambda room: save_deep(room, pictures),
    }
    found = {"folder": str(folder)}
    for kind, save in kinds.items():
        shutil.rmtree(root / kind, ignore_errors=True)
        found[kind] = save(root / kind)
    return found


def opened(place: object, **options: object) -> StoredSource:
    return open_source(str(place), SourceOptions(size=SIZE, **options))


def labels(source: StoredSource) -> dict[str, str]:
    """Class of each picture."""
    read = (source.read(position) for position in range(len(source)))
    return {picture.name: source.classes[picture.label] for picture in read}


def refused(place: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        opened(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain(value: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (value, 9, 9)).save(buffer, kind)
    return buffer.getvalue()
