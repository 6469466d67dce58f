# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in one process: what is saved is what is loaded, and a whole is a whole."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Callback
from composer.optim import ConstantWithWarmupScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from toy_trainer import ToyGenerator, toy_trainer

from ahpa_scale.algorithms import EMA
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint, list_checkpoints
from ahpa_scale.checkpoint.local_copy import open_checkpoint, open_newest
from ahpa_scale.checkpoint.manifest import FileEntry, Manifest
from ahpa_scale.checkpoint.plain import decode, encode
from ahpa_scale.checkpoint.reader import Reader, rank_file
from ahpa_scale.checkpoint.resume import Resume
from ahpa_scale.checkpoint.retention import Retention
from ahpa_scale.checkpoint.saver import Description, Saver

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.timedeltas()
    | st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.float64).reshape(-1, 1))
    | st.integers(0, 5).map(lambda n: np.arange(n, dtype=np.uint32)),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


def same(a, b) -> bool:
    if isinstance(a, Tensor | np.ndarray):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool((a == b).all())
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(PLAIN)
@settings(max_examples=200)
def test_plain_state_comes_back_through_json(value):
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(value, "x/", tensors), allow_nan=False)
    assert same(decode(json.loads(text), tensors), value)


def test_numbers_that_json_lacks_come_back_too():
    for value in (math.inf, -math.inf):
        assert decode(encode(value, "", {}), {}) == value
    assert math.isnan(decode(encode(math.nan, "", {}), {}))
    assert decode(encode({"~": 1}, "", {}), {}) == {"~": 1}


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, datetime.date(2026, 1, 1)])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(CheckpointError, match=f"{type(value).__name__} is no plain data"):
        encode([value], "", {})


@given(st.data(), st.integers(1, 40))
@settings(max_examples=60)
def test_any_stretch_is_read_however_it_was_cut(tmp_path_factory, data, numel):
    folder = tmp_path_factory.mktemp("cut")
    cuts = sorted(data.draw(st.sets(st.integers(1, max(numel - 1, 1)), max_size=6)))
    whole_n = torch.arange(numel, dtype=torch.float32)
    bounds = [0, *[cut for cut in cuts if cut < numel], numel]
    for rank, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        save_file({f"model/w@{start}": whole_n[start:end].clone()}, folder / rank_file(rank))
    (folder / "state.json").write_text(json.dumps({"shapes": {"model/w": [numel]}, "state": {}}))
    names = {rank_file(rank): FileEntry(0, "") for rank in range(len(bounds) - 1)}
    (folder / "manifest.json").write_text(manifest(files=names).to_json())
    first = data.draw(st.integers(0, numel))
    count = data.draw(st.integers(0, numel - first))
    with Reader(folder) as reader:
        assert reader.names("model/") == ["w"]
        assert torch.equal(reader.stretch("model/w", first, count), whole_n[first : first + count])
    del names[rank_file(len(bounds) // 2 - 1)]  # its file is still there, and not to be read
    (folder / "manifest.json").write_text(manifest(files=names).to_json())
    with Reader(folder) as reader, pytest.raises(CheckpointError, match="lacks"):
        reader.stretch("model/w", 0, numel)


def manifest(**changes) -> Manifest:
    content = {
        "batch": 4, "num_images": 16, "epoch": 0, "created": "2026-11-25T00:00:00+00:00",
        "run_name": "r", "engine": "ddp", "world_size": 2, "versions": {"torch": "2"},
        "data": {"epoch": 0}, "config": {"seed": 1}, "loggers": {},
        "files": {"a": FileEntry(3, "0")},
    }  # fmt: skip
    return Manifest(**content | changes)


def test_a_manifest_comes_back_and_notices_every_flipped_bit():
    text = manifest().to_json().encode()
    assert Manifest.from_json(text) == manifest()
    for position in range(len(text)):
        for bit in (0, 3):
            flipped = bytearray(text)
            flipped[position] ^= 1 << bit
            if json_or_none(flipped) == json.loads(text):
                continue  # white space for white space
            with pytest.raises(CheckpointError):
                Manifest.from_json(bytes(flipped))


def json_or_none(text: bytes):
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": "x", "sha256": ""}'])
def test_what_is_no_manifest_is_refused_in_one_line(text: str):
    with pytest.raises(CheckpointError, match="manifest") as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)


def found(batch: int, problem: str | None = None) -> StoredCheckpoint:
    return StoredCheckpoint(f"x/ba{batch}", f"ba{batch}", batch, {}, None, problem, begun=False)


BATCHES = st.lists(st.tuples(st.integers(0, 50), st.booleans()), unique_by=lambda pair: pair[0])


@given(BATCHES, st.integers(1, 5), st.none() | st.integers(1, 10))
def test_the_newest_whole_one_and_those_promised_stay(batches, keep: int, every: int | None):
    everything = [found(batch, None if whole else "x") for batch, whole in sorted(batches)]
    gone = {one.batch for one in Retention(keep, every).to_remove(everything)}
    whole = [one.batch for one in everything if one.problem is None]
    assert not gone & set(whole[-keep:])
    assert every is None or not any(batch % every == 0 for batch in gone & set(whole))
    assert all(batch < whole[-1] for batch in gone)
    assert not Retention().to_remove(everything)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": -2}, {"every": 0}])
def test_impossible_retentions_are_refused(options):
    with pytest.raises(ValueError, match="give"):
        Retention(**options)


class Draws(Callback):
    """Takes random numbers from every generator, as a user's augmentation would."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def batch_start(self, state, logger):
        import random

        self.drawn.append(random.random() + np.random.rand() + float(torch.rand(())))


def train(duration: str, *callbacks, lr: float = 0.1, scheduler=None, **options):
    """A toy run with AdamW and averages -> everything that training makes."""
    model, ema, draws = ToyGenerator(**options), EMA(decay=0.9), Draws()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr)
    trainer = toy_trainer(
        duration,
        model=model,
        optimizers=optimizer,
        schedulers=scheduler,
        algorithms=ema,
        callbacks=[*callbacks, draws],
    )
    trainer.fit()
    trainer.close()
    made = {f"model {name}": value for name, value in model.state_dict().items()}
    made |= {f"average {name}": value for name, value in ema.shadow.items()}
    for number, entry in optimizer.state_dict()["state"].items():
        made |= {f"moment {number} {key}": value for key, value in entry.items()}
    return made, draws.drawn, trainer


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("batch", [3, 6, 8], ids=["mid-epoch", "epoch's end", "second epoch"])
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(batch: int, tmp_path: Path):
    straight, drawn, _ = train("11ba")
    train(f"{batch}ba", Saver(str(tmp_path), "100ba"))
    start = open_newest(str(tmp_path), tmp_path / "cache")
    assert start is not None
    assert (start.manifest.batch, start.manifest.num_images) == (batch, 4 * batch)
    resumed, went_on, _ = train("11ba", Resume(start, same_run=True))
    assert_same(straight, resumed)
    assert went_on == drawn[batch:]


def test_saving_changes_nothing(tmp_path: Path):
    straight, drawn, _ = train("7ba")
    saved, also, _ = train("7ba", Saver(str(tmp_path), "1ba"))
    assert_same(straight, saved)
    assert drawn == also
    assert [one.batch for one in list_checkpoints(str(tmp_path))] == list(range(1, 8))
    assert (tmp_path / "latest").read_text() == "ba7\n"
    assert not list(tmp_path.rglob(".spool*"))


def test_a_manifest_tells_the_run(tmp_path: Path):
    told = Description("the-run", "fsdp2", {"seed": 5}, {"wandb": "abc"})
    train("2ba", Saver(str(tmp_path), "2ba", description=told))
    (one,) = list_checkpoints(str(tmp_path))
    assert one.manifest is not None
    assert one.manifest.run_name == "the-run"
    assert one.manifest.engine == "fsdp2"
    assert one.manifest.config == {"seed": 5}
    assert one.manifest.loggers == {"wandb": "abc"}
    assert one.manifest.versions["torch"] == torch.__version__
    assert set(one.manifest.files) == {"rank00000.safetensors", "state.json"}


def test_old_ones_go_and_those_at_multiples_stay(tmp_path: Path):
    train("9ba", Saver(str(tmp_path), "1ba", retention=Retention(keep=2, every=4)))
    assert [one.batch for one in list_checkpoints(str(tmp_path))] == [4, 8, 9]


@pytest.mark.parametrize("scheduler", [None, ConstantWithWarmupScheduler("4ba")])
def test_the_runs_own_learning_rate_counts(scheduler, tmp_path: Path):
    train("2ba", Saver(str(tmp_path), "2ba"), scheduler=scheduler)
    start = open_checkpoint(str(tmp_path / "ba2"), tmp_path)
    rates = {}
    for lr in (0.1, 0.05):
        watch = Rates()
        train("4ba", Resume(start, same_run=False), watch, lr=lr, scheduler=scheduler)
        rates[lr] = watch.rates
    assert rates[0.05] == pytest.approx([rate / 2 for rate in rates[0.1]])
    if scheduler is None:
        assert rates[0.1] == [0.1, 0.1]
    else:
        straight = Rates()
        train("4ba", straight, scheduler=scheduler)
        assert rates[0.1] == straight.rates[2:]


class Rates(Callback):
    """The learning rate of each batch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def batch_start(self, state, logger):
        self.rates.append(state.optimizers[0].param_groups[0]["lr"])


def test_another_model_is_refused_by_name(tmp_path: Path):
    train("2ba", Saver(str(tmp_path), "2ba"))
    start = open_checkpoint(str(tmp_path), tmp_path)
    with pytest.raises(CheckpointError, match=r"it has a 'attachments.alignment.*another model"):
        train("4ba", Resume(start, same_run=True), aligned=False)
    still = {"lr": 0.0, "aligned": False}
    unaligned, _, trainer = train("3ba", Resume(start, same_run=False), **still)
    assert trainer.state.timestamp.batch == 3
    with Reader(start.folder) as reader:
        assert torch.equal(unaligned["model dit.mix.weight"], reader.whole("model/dit.mix.weight"))


def test_a_full_disk_costs_a_checkpoint_and_no_training(tmp_path: Path, monkeypatch, caplog):
    from ahpa_scale.checkpoint import writer

    original = writer.save_tensors
    calls = []

    def full_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(*arguments, **options)

    monkeypatch.setattr(writer, "save_tensors", full_once)
    train("6ba", Saver(str(tmp_path), "2ba"))
    assert [one.batch for one in list_checkpoints(str(tmp_path)) if not one.problem] == [2, 6]
    assert "ba4 was not saved: rank 0: [Errno 28] No space left on device" in caplog.text


def test_a_last_checkpoint_that_fails_is_an_error(tmp_path: Path, monkeypatch):
    from ahpa_scale.checkpoint import writer

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_tensors", full)
    with pytest.raises(CheckpointError, match="ba2 was not saved"):
        train("2ba", Saver(str(tmp_path), "2ba"))


def test_what_a_killed_attempt_left_of_a_checkpoint_goes(tmp_path: Path):
    left = tmp_path / "ba2" / ".spool-host-b-17-x"
    left.mkdir(parents=True)
    (left / "rank00000.safetensors").touch()
    train("2ba", Saver(str(tmp_path), "2ba"))
    assert not left.exists()
