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
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from evaluated_run import SETTINGS
from safetensors.torch import save

from ahpa_scale.algorithms.ahpa.gap_map import read_gap_map
from ahpa_scale.algorithms.guard.ledger import may_roll_back
from ahpa_scale.callbacks.metrics_file import drop_rows_after
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import FileEntry, Manifest
from ahpa_scale.checkpoint.reader import Reader
from ahpa_scale.commands.evaluate.rows import Rows, settings_digest
from ahpa_scale.config.load import load_yaml
from ahpa_scale.data.card import read_card, read_prior_statistics
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.data.index import read_index
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import load_vae_config
from ahpa_scale.models.vae_files import check_weights
from experiments.judges.classifier import Classifier
from experiments.judges.demo_scores import load_demo_reference
from experiments.judges.distributions import QUANTILES
from experiments.judges.factor_judge import FactorJudge
from experiments.judges.reference import load_reference

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


MARKED = [
    ("float", "1.5"), ("float", None), ("float", [1]), ("tensor", 3), ("tensor", "rank0/0"),
    ("array", []), ("array", ["|O", [2], "state/0"]), ("array", ["<f4", [4], "state/0"]),
    ("array", ["<f4", [-4], "state/raw"]), ("array", ["<f4", [5], "state/raw"]),
    ("array", ["<f4", [2**70, 2**70], "state/raw"]), ("array", ["<f3", [4], "state/raw"]),
    ("array", ["<U0", [4], "state/raw"]), ("array", ["<f4", "ab", "state/raw"]),
    ("array", [["<f4"], [4], "state/raw"]), ("timedelta", [1]), ("timedelta", [1, 2, "3"]),
    ("timedelta", [10**20, 0, 0]), ("timedelta", [True, 0, 0]), ("dict", {"a": 1}),
    ("dict", [1]), ("dict", [[1]]), ("dict", [[[1], 2]]), ("dict", [[{}, 2]]), ("tuple", "ab"),
    ("tuple", 5), ("set", [1]), (None, 1), (["tuple"], [1]),
]  # fmt: skip


def test_states_with_marks_that_no_run_writes(tmp_path):
    checkpoint(tmp_path)
    tensors = {"state/0@0": torch.ones(4), "state/raw@0": torch.zeros(16, dtype=torch.uint8)}
    (tmp_path / "rank00000.safetensors").write_bytes(save(tensors, {"rank_state": "{}"}))
    shapes = {"state/0": [4], "state/raw": [16]}

    def read(state: Any) -> Any:
        told = {"shapes": shapes, "state": {"a": state}}
        (tmp_path / "state.json").write_text(json.dumps(told))
        with Reader(tmp_path) as reader:
            return reader.state()["a"]

    for kind, content in MARKED:
        for state in ({"~": kind, "v": content}, [{"~": kind, "v": content}], {"~": kind}):
            with pytest.raises(CheckpointError) as caught:
                read(state)
            assert len(str(caught.value).splitlines()) == 1
    assert read({"~": "array", "v": ["<f4", [2, 2], "state/raw"]}).tolist() == [[0, 0], [0, 0]]
    assert read({"~": "dict", "v": [[{"~": "tuple", "v": [1, "a"]}, 2]]}) == {(1, "a"): 2}


def test_a_tensor_of_which_nothing_was_saved_is_one_line(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "state.json").write_text('{"shapes": {"model/x": [1]}, "state": {}}')
    with Reader(tmp_path) as reader, pytest.raises(CheckpointError, match="lacks all"):
        reader.dtype("model/x")


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


def row_of(settings: Any) -> dict[str, Any]:
    """Of an evaluation, with the hash of what it says."""
    told = {"batch": 1, "num_images": 8, "epoch": 0, "weights": "ema", "flow": 0.5}
    told |= {"flow_t": [0.5, 0.5], "checkpoint": "a", "settings": settings}
    return {**told, "settings_hash": settings_digest(settings)}


def test_rows_of_evaluations(tried):
    folder = tried.root / "inside"

    def read(content: bytes) -> None:
        (folder / "evaluation.jsonl").write_bytes(content + b"\n")
        for row in Rows(str(folder)):
            assert len(row["flow_t"]) == row["settings"]["bins"]

    def hashed(content: bytes) -> bytes:
        try:
            return json.dumps(row_of(json.loads(content))).encode()
        except (ValueError, RecursionError):
            return content

    tried.each(hostile(json.dumps(row_of(SETTINGS)).encode(), 150), read)
    tried.each(map(hashed, hostile(json.dumps(SETTINGS).encode(), 150)), read)


def test_a_row_that_is_none_is_named_by_its_line(tmp_path):
    good = json.dumps(row_of(SETTINGS))
    (tmp_path / "evaluation.jsonl").write_text(f'{good}\n{{"batch": 1e400}}\n')
    with pytest.raises(UserError, match=r"evaluation\.jsonl, line 2 .*not finite.*another --out"):
        Rows(str(tmp_path))
    other = json.dumps({**row_of({**SETTINGS, "seed": 1}), "batch": 2})
    (tmp_path / "evaluation.jsonl").write_text(f"{good}\n{other}\n")
    with pytest.raises(UserError, match="line 2: settings are not those of the other rows"):
        Rows(str(tmp_path))


def test_rows_of_a_run_that_are_none_are_left_out_and_one_is_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"batch": batch, "lr": 0.5}).encode() for batch in (1, 2, 3)]
    odd = [text.replace(b"\n", b"") for text in TEXTS if text]
    odd += [f'{{"batch": {value}}}'.encode() for value in VALUES if value not in ("-1", "0")]
    path.write_bytes(b"\n".join([good[0], *odd, *good[1:], b'{"batch": 2'])[:])
    drop_rows_after(path, 2)
    kept = path.read_bytes().splitlines()
    assert kept == good[:2]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{path}, line 2 is not JSON")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    before = path.stat()
    drop_rows_after(path, 2)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_counts_of_rollbacks(tried):
    folder = tried.root / "inside"
    clock = SimpleNamespace(batch=SimpleNamespace(value=7))
    state: Any = SimpleNamespace(callbacks=[], timestamp=clock)

    def read(content: bytes) -> None:
        (folder / "rollbacks.json").write_bytes(content)
        assert may_roll_back(state, str(folder), 10**9)
        assert json.loads((folder / "rollbacks.json").read_text())[-1] == 7

    tried.each(hostile(b"[1, 2, 3]", 150), read)


def test_references_of_judges(tried):
    folder = tried.root / "inside"
    judge = Classifier("judge", 4)
    (folder / "judge").mkdir()
    judge.write(folder / "judge")
    many = judge.feature_dim
    tensors = {"mean": torch.ones(many).double(), "covariance": torch.eye(many).double()}
    tensors |= {"kernel": torch.ones(3, many)}
    facts, file = folder / "reference.json", folder / "reference.safetensors"
    good = json.dumps({"count": 5, "judge_accuracy": 0.5, "size": 32}).encode()
    file.write_bytes(save(tensors))

    def read_facts(content: bytes) -> None:
        facts.write_bytes(content)
        load_reference(folder)

    def read_tensors(content: bytes) -> None:
        file.write_bytes(content)
        assert load_reference(folder).kernel_NF.shape[1] == many

    read_facts(good)
    tried.each(hostile(good, 60), read_facts)
    facts.write_bytes(good)
    for name, value in (("mean", torch.ones(())), ("kernel", torch.full((3, many), torch.nan)),
                        ("covariance", torch.ones(many)), ("kernel", torch.ones(()))):  # fmt: skip
        tried.once(save({**tensors, name: value}), read_tensors)
    tried.each(broken_tensors(save(tensors), 40), read_tensors)


def test_references_of_demos(tried):
    folder, spec = tried.root / "inside", DemoSpec()
    judge = FactorJudge(spec.num_shapes)
    weights = {name: value.contiguous() for name, value in judge.state_dict().items()}
    (folder / "factor-judge.safetensors").write_bytes(save(weights))
    tensors = {"layout": torch.ones(4, QUANTILES), "texture": torch.ones(7, QUANTILES)}
    facts, file = folder / "demo.json", folder / "demo.safetensors"
    good = json.dumps(asdict(spec)).encode()
    file.write_bytes(save(tensors))

    def read_facts(content: bytes) -> None:
        facts.write_bytes(content)
        load_demo_reference(folder)

    def read_tensors(content: bytes) -> None:
        file.write_bytes(content)
        load_demo_reference(folder)

    read_facts(good)
    tried.each(hostile(good, 80), read_facts)
    facts.write_bytes(good)
    for name, value in (("layout", torch.ones(4, 3)), ("texture", torch.full((7, 256), torch.inf))):
        tried.once(save({**tensors, name: value}), read_tensors)
    tried.each(broken_tensors(save(tensors), 40), read_tensors)
