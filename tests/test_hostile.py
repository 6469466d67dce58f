# SPDX-License-Identifier: Apache-2.0
"""More than a thousand texts and files that no preparation and no run would write: each is a value,
or one line, and nothing is written anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from ahpa_scale.algorithms.ahpa.gap_map import read_gap_map
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import FileEntry, Manifest
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.config.load import load_yaml
from ahpa_scale.data.card import read_card, read_prior_statistics
from ahpa_scale.data.index import read_index
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import load_vae_config
from ahpa_scale.models.vae_files import check_weights

#: What takes a value's place, as JSON.
VALUES = [
    "null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, "1e308",
    "4294967296", "0.5", '""', '"\\u0000"', '"\\ud800"', '"../../x"', '"/etc/passwd"', '"~"',
    '"\\u001b[2J"', '"' + "y" * 10_000 + '"', "[]", "{}", "[[]]", '{"a":{"a":{"a":1}}}',
    "[" * 3000 + "]" * 3000, '{"~":"tensor","v":"x"}', '{"~":"array","v":["O",[1],"x"]}', "[1,2,3]",
]  # fmt: skip
#: What takes a text's place.
TEXTS = [
    b"", b"\0", b"\xff\xfe{}", b"null", b"[]", b"{", b"{}" * 9, b"[" * 100_000, b'{"a":' * 50_000,
    b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b'"' + b"a" * 1000, b"1" * 100_000, b"\x80\x04K\x01.",
]  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in a nest but the nest itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*place, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*place, key))


def hostile(text: bytes, number: int) -> Iterator[bytes]:
    """So many variants of a JSON text, and some that have nothing of it."""
    yield from TEXTS
    chance, good = random.Random(0), json.loads(text)
    everywhere = list(places(good))
    for turn in range(number):
        changed = json.loads(text)
        *path, last = everywhere[turn % len(everywhere)]
        inner = functools.reduce(lambda found, key: found[key], path, changed)
        kind = chance.randrange(8)
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, dict):
            inner["surprise"] = 1
        elif kind == 2:
            cut = chance.randrange(len(text))
            yield text[:cut] + bytes([chance.randrange(256)]) + text[cut + 1 :]
            continue
        else:
            inner[last] = "<here>"
        yield json.dumps(changed).replace('"<here>"', chance.choice(VALUES)).encode()


class Tried:
    """Gives variants to a reader, and counts what became of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.taken, self.refused = root, 0, 0

    def each(self, variants: Iterator[bytes], read: Callable[[bytes], object]) -> None:
        for variant in variants:
            self.once(variant, read)

    def once(self, variant: bytes, read: Callable[[bytes], object]) -> None:
        said = "taken"
        try:
            read(variant)
            self.taken += 1
        except (UserError, CheckpointError) as error:
            self.refused += 1
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{variant[:500]!r} made {error!r}") from error
        assert len(said.splitlines()) == 1, variant[:200]
        assert len(said) < 2000, variant[:200]


@pytest.fixture
def tried(tmp_path) -> Iterator[Tried]:
    """What was tried; afterwards nothing lies there that the test did not put there."""
    found = Tried(tmp_path / "outside")
    (found.root / "inside").mkdir(parents=True)
    begun = time.process_time()
    yield found
    assert found.taken + found.refused >= 100
    assert found.refused > found.taken
    assert [path.name for path in found.root.iterdir()] == ["inside"]
    assert time.process_time() - begun < 60


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def test_cards(prepared, tried):
    good = (Path(prepared) / "dataset.json").read_bytes()
    folder = tried.root / "inside"

    def read(content: bytes) -> None:
        (folder / "dataset.json").write_bytes(content)
        card = read_card(folder)
        assert "/" not in card.fingerprint
        assert set(card.fingerprint) <= set("0123456789abcdef")

    tried.each(hostile(good, 250), read)


def test_indexes(prepared, tried):
    card = read_card(prepared)

    def read(content: bytes) -> None:
        named = type(card)(**{**vars(card), "fingerprint": digest(content)})
        for shard in read_index(content, named, "index.json").shards:
            assert ".." not in shard.raw_data.basename

    tried.each(hostile((Path(prepared) / "index.json").read_bytes(), 250), read)


def checkpoint(folder: Path) -> Manifest:
    """A small one, in which everything is as it should be."""
    tensors = {"state/0@0": torch.ones(4), "rank0/0@0": torch.ones(2)}
    (folder / "rank00000.safetensors").write_bytes(save(tensors, {"rank_state": '{"a": [1]}'}))
    state = {"shapes": {"state/0": [2, 2]}, "state": {"a": {"~": "tensor", "v": "state/0"}}}
    (folder / "state.json").write_text(json.dumps(state))
    names = ("rank00000.safetensors", "state.json")
    files = {name: FileEntry((folder / name).stat().st_size, "0" * 64) for name in names}
    fields = dict.fromkeys(("batch", "num_images", "epoch", "world_size"), 1)
    words = dict.fromkeys(("created", "run_name", "engine"), "x")
    made = Manifest(**fields, **words, versions={}, data=None, config={}, loggers={}, files=files)
    (folder / "manifest.json").write_text(made.to_json())
    return made


def read_all(folder: Path) -> None:
    with Reader(folder) as reader:
        reader.state()
        reader.rank_state(0)
        for name in reader.names(""):
            reader.whole(name)


def signed(content: bytes) -> bytes:
    """A manifest with the hash of what it says, as whoever makes one can give it."""
    try:
        told = json.loads(content)
        told.pop("sha256", None)
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return json.dumps({**told, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content


def test_manifests(tried):
    made = checkpoint(tried.root / "inside")

    def read(content: bytes) -> None:
        found = Manifest.from_json(content)
        assert not any("/" in name for name in found.files)
        assert found.total_bytes >= 0
        assert found.misfit({}) is not None or not found.files

    good = made.to_json().encode()
    tried.each(hostile(good, 100), read)
    tried.each(map(signed, hostile(good, 150)), read)


def test_states_of_checkpoints(tried):
    folder = tried.root / "inside"
    checkpoint(folder)
    good = (folder / "state.json").read_bytes()
    read_all(folder)

    def read(content: bytes) -> None:
        (folder / "state.json").write_bytes(content)
        read_all(folder)

    tried.each(hostile(good, 150), read)


def broken_tensors(good: bytes, number: int) -> Iterator[bytes]:
    """Safetensors with hostile headers, and with bytes changed."""
    size = struct.unpack("<Q", good[:8])[0]
    header, data = good[8 : 8 + size], good[8 + size :]
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, size - 1, size + 1, len(good)):
        yield struct.pack("<Q", length) + good[8:]
    for changed in hostile(header, number):
        yield struct.pack("<Q", len(changed)) + changed + data


def test_tensors_of_checkpoints(tried):
    folder = tried.root / "inside"
    checkpoint(folder)
    file = folder / "rank00000.safetensors"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        read_all(folder)

    tried.each(broken_tensors(file.read_bytes(), 150), read)


def test_statistics_of_priors(prepared, tried):
    good = {"a.mean": torch.ones(2), "a.covariance": torch.eye(2)}
    file = tried.root / "inside/prior_statistics.safetensors"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        for name, value in read_prior_statistics(file.parent).items():
            assert value.dtype == torch.float32, name
            assert bool(value.isfinite().all())

    tried.each(broken_tensors(save(good), 100), read)
    tried.once(save({**good, "a.mean": torch.full((2,), torch.nan)}), read)
    assert tried.taken < 20


def test_recoverability_maps(tried):
    good = {"levels": ["a"], "blocks": [1, 2], "bins": 2, "r2_LDT": [[[0.5, 1], [0, 1]]]}
    file = tried.root / "inside/recoverability.json"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        read_gap_map(file)

    tried.each(hostile(json.dumps(good).encode(), 120), read)


def test_folders_of_a_vae(vae_path, tried):
    folder = Path(shutil.copytree(vae_path, tried.root / "inside/vae"))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    name = "diffusion_pytorch_model.safetensors"
    good = {"metadata": {"total_size": 1}, "weight_map": {"a": name, "b": name}}
    config = (folder / "config.json").read_bytes()

    def read_config(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        load_vae_config(folder)

    def read_index_of_weights(content: bytes) -> None:
        index.write_bytes(content)
        check_weights(folder)

    tried.each(hostile(config, 150), read_config)
    tried.each(hostile(json.dumps(good).encode(), 60), read_index_of_weights)


def test_yaml(tried):
    file = tried.root / "inside/run.yaml"
    good = yaml.safe_load(Path("yamls/demo-ahpa.yaml").read_text())
    text = json.dumps(good).encode()

    def read(content: bytes) -> None:
        file.write_bytes(content)
        load_yaml(file)

    tried.each(hostile(text, 150), read)
    odd = "${oc.env:NO_SUCH} ${ ${a } ${seed} ${oc.nothing:1} ${..x} *x !!set{a} ? &x"
    odd += " %YAML ${oc.decode:'[1'} ${oc.select:seed} \\${x} ${a[0]} ${.} 0o9 !!python/name:os"
    for word in odd.split():
        tried.once(f"run_name: {word}".encode(), read)
