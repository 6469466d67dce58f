# SPDX-License-Identifier: Apache-2.0
"""A new run starts from weights alone: `model.weights`."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from composer.core import Algorithm, Event
from data_sets import SIZE
from job import BIN, run
from official_files import DIT_ARGS, SIT_ARGS, filled, trained_by
from safetensors.torch import save_file

from ahpa_scale.algorithms import EMA
from ahpa_scale.config.checks.static import check_data
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.data.card import read_card
from ahpa_scale.data.prepare import prepare
from ahpa_scale.models.description import DESCRIPTION, ModelDescription
from ahpa_scale.models.dit import DiT
from ahpa_scale.run.build import build_trainer

LABELS = "y_embedder.embedding_table.weight"
SHAPE = {"depth": 2, "width": 48, "heads": 4, "input_size": SIZE // 4}


def written(file: Path, model: DiT, **changed) -> Path:
    """A described file with a model's weights."""
    told = ModelDescription(2, 48, 4, 2, SIZE // 4, 4, model.num_classes, **changed)
    save_file(model.state_dict(), file, metadata={DESCRIPTION: told.to_json()})
    return file


@pytest.fixture
def start(load, alone, prepared, vae_path, tmp_path):
    """The Trainer of a run on pictures of three classes, or on another data set."""

    def build(*overrides: str, weights: object = None, data: str = prepared):
        card = read_card(data)
        config = load(
            "model.name=tiny/2",
            "model.depth=2",
            "model.width=48",
            "model.heads=4",
            f"model.input_size={SIZE // 4}",
            f"model.num_classes={card.num_classes}",
            f"vae.path={vae_path}",
            f"data.local={data}",
            "data.num_workers=0",
            "device=cpu",
            "precision=fp32",
            "global_train_batch_size=8",
            "optimizer={lr: 1e-3, warmup: 0ba}",
            "ema.decay=0.5",
            f"output_dir={tmp_path / 'run'}",
            *(() if weights is None else (f"model.weights={weights}",)),
            *overrides,
        )
        return build_trainer(config, card, check_data(config, card))

    return build


class Losses(Algorithm):
    """Notes each batch's loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def match(self, event, state):
        return event == Event.BATCH_END

    def apply(self, event, state, logger):
        self.seen.append(state.loss["total"].item())


def losses(trainer) -> list[float]:
    noted = Losses()
    trainer.state.algorithms.append(noted)
    trainer.fit()
    trainer.close()
    return noted.seen


def averages(trainer) -> dict[str, torch.Tensor]:
    (ema,) = (one for one in trainer.state.algorithms if isinstance(one, EMA))
    return {name.removeprefix("dit."): value for name, value in ema.shadow.items()}


@pytest.fixture(scope="module")
def ten_classes(pictures, vae_path, tmp_path_factory) -> str:
    """The pictures of the three classes, dealt out to ten."""
    place = tmp_path_factory.mktemp("ten")
    for number, path in enumerate(sorted(pictures.rglob("*.*"))):
        folder = place / "pictures" / f"class {number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".txt":
            shutil.copy(path, folder / path.name)
    options = {"size": SIZE, "scaling": "channel", "progress": False}
    prepare(str(place / "pictures"), str(place / "set"), vae_path=vae_path, **options)
    return str(place / "set")


def test_ten_classes_start_from_a_thousand(start, ten_classes, tmp_path, caplog):
    """The loss of the first batch is that of a copy by hand, and only the labels are new."""
    model = filled(**SHAPE, num_classes=1000)
    file = written(tmp_path / "w.safetensors", model)
    with caplog.at_level(logging.WARNING):
        trainer = start("max_duration=12ba", weights=file, data=ten_classes)
    [said] = [each.getMessage() for each in caplog.records if "weights:" in each.getMessage()]
    assert said.endswith(
        "its label table is of 1000 classes (1001 rows), the run's of 10 (11 rows): that table is "
        "drawn anew, and nothing else"
    )
    by_hand = start("max_duration=1ba", data=ten_classes)
    fresh = {name: value.clone() for name, value in by_hand.state.model.dit.state_dict().items()}
    state = dict(model.state_dict())
    state[LABELS] = fresh[LABELS]
    by_hand.state.model.dit.load_state_dict(state)
    loaded = trainer.state.model.dit.state_dict()
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name
    (first,) = losses(by_hand)
    trained = losses(trainer)
    assert trained[0] == first
    assert min(trained[-4:]) < trained[0]


def test_the_average_starts_from_them_too(start, tmp_path):
    file = written(tmp_path / "w.safetensors", filled(**SHAPE, num_classes=3))
    trainer = start("max_duration=1ba", "optimizer.lr=1e-12", weights=file)
    trainer.fit()
    for name, value in averages(trainer).items():
        expected = filled(**SHAPE, num_classes=3).state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    trainer.close()


def test_official_sit_weights_are_turned_into_our_time(start, tmp_path, caplog):
    model = filled(**SHAPE, num_classes=3, qk_norm=True, learn_sigma=True)
    args = {**SIT_ARGS, "model": None, "num_classes": 3}
    torch.save({"ema": model.state_dict(), "path_type": "Linear"}, tmp_path / "bare.pt")
    torch.save({"ema": model.state_dict(), "args": _namespace(args)}, tmp_path / "sit.pt")
    trainer = start("max_duration=1ba", "model.qk_norm=true", weights=tmp_path / "sit.pt")
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.7])
    y = torch.tensor([0, 3])
    with torch.no_grad():
        expected = -model(x, 1 - t, y)
        found = trainer.state.model.dit(x, t, y)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert "SiT's time is turned into ours" in caplog.text
    trainer.close()
    with pytest.raises(ConfigError, match=r"model\.weights: .*does not tell whose weights"):
        start("max_duration=1ba", "model.qk_norm=true", weights=tmp_path / "bare.pt")


def _namespace(values):
    import argparse

    return argparse.Namespace(**values)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"depth": 3}, "has depth 3, and the run 2: name weights of this shape, or change model.d"),
        ({"width": 96}, "has width 96, and the run 48"),
        ({"input_size": 8}, "has input size 8, and the run 4"),
        ({"in_channels": 8}, "has in channels 8, and the run 4"),
        ({"heads": 2}, "has heads 2, and the run 4"),
        ({"qk_norm": True}, "has qk norm True, and the run False"),
    ],
)
def test_another_shape_is_one_line(start, tmp_path, shape, said):
    whole = {**SHAPE, "in_channels": 4, "qk_norm": False, **shape}
    model = filled(**whole, num_classes=3)
    sizes = ("depth", "width", "heads")
    told = ModelDescription(
        *(whole[name] for name in sizes), 2, whole["input_size"], whole["in_channels"], 3,
        qk_norm=whole["qk_norm"],
    )  # fmt: skip
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file, metadata={DESCRIPTION: told.to_json()})
    with pytest.raises(ConfigError, match=said) as caught:
        start("max_duration=1ba", weights=file)
    assert caught.value.key == "model.weights"
    assert "\n" not in str(caught.value)


def test_weights_that_no_run_can_start_from_are_one_line(start, tmp_path):
    model = filled(**SHAPE, num_classes=3, learn_sigma=True)
    file = written(tmp_path / "w.safetensors", model, learn_sigma=True, convention="dit-eps")
    with pytest.raises(ConfigError, match="predicts noise at 1,000 steps"):
        start("max_duration=1ba", weights=file)
    with pytest.raises(ConfigError, match="there is nothing at"):
        start("max_duration=1ba", weights=tmp_path / "none.pt")
    assert DIT_ARGS["num_classes"] == 10
    trained_by(tmp_path / "dit.pt", filled(learn_sigma=True), {**DIT_ARGS, "model": None})
    with pytest.raises(ConfigError, match="predicts noise"):
        start("max_duration=1ba", weights=tmp_path / "dit.pt")


def test_what_else_differs_is_said(start, tmp_path, caplog, prepared):
    card = read_card(prepared)
    model = filled(**SHAPE, num_classes=3)
    known = {"vae_identity": card.vae.identity, "classes": card.classes, "scaling": card.scaling}
    for changed, said in (
        (known, None),
        ({**known, "path": "gvp"}, "trained on the path gvp, and the run is on linear"),
        ({**known, "vae_identity": "f" * 16}, "on latents of the VAE ffffffffffffffff, not of"),
        ({**known, "classes": card.classes[::-1]}, "its label table is kept, but class "),
        ({**known, "classes": ("x", "y", "z")}, "kept, but the classes have other names"),
    ):
        caplog.clear()
        start("max_duration=1ba", weights=written(tmp_path / "w.safetensors", model, **changed))
        told = [each.getMessage() for each in caplog.records if "weights:" in each.getMessage()]
        assert len(told) == (said is not None)
        assert said is None or said in told[0]


def test_beside_a_checkpoint_the_key_would_do_nothing(load, tmp_path):
    said = load.complaint("model.weights=w.pt", "checkpoint.load_path=c")
    assert "model.weights: 'w.pt' would have no effect: checkpoint.load_path brings" in said


def test_a_resumed_run_needs_the_weights_no_more(start, tmp_path):
    file = written(tmp_path / "w.safetensors", filled(**SHAPE, num_classes=3))
    saved = (f"checkpoint.save_folder={tmp_path / 'saved'}", "checkpoint.save_interval=1ba")
    first = start("max_duration=2ba", *saved, weights=file)
    losses(first)
    file.unlink()
    again = start("max_duration=3ba", *saved, "checkpoint.autoresume=true", weights=file)
    assert again.state.timestamp.batch.value == 2
    assert len(losses(again)) == 1


def test_every_engine_starts_from_the_same_weights(demo_data, tmp_path):
    """Two ranks of each engine have the first loss of one rank alone."""
    model = filled(input_size=8, in_channels=8, depth=2, num_classes=8)
    told = ModelDescription(2, 192, 3, 2, 8, 8, 8)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file, metadata={DESCRIPTION: told.to_json()})

    def first(folder: Path, *overrides: str, ranks: int) -> float:
        command = [sys.executable] if ranks == 1 else [BIN / "composer", "-n", ranks]
        done = run(
            *(*command, "train.py", "yamls/demo-ahpa.yaml", "alignment.kind=none"),
            *("model.depth=2", f"model.weights={file}", "max_duration=1ba", "precision=fp32"),
            *("global_train_batch_size=16", "optimizer.warmup=0ba", "logging.interval=1ba"),
            *("checkpoint.save_folder=null", "checkpoint.keep=null"),
            *("sampling.interval=null", f"data.local={demo_data(64)}", "data.num_workers=1"),
            *(f"output_dir={folder}", *overrides),
        )
        assert done.returncode == 0, done.stderr
        [row] = (folder / "metrics.jsonl").read_text().splitlines()
        return json.loads(row)["loss/train/total"]

    alone = first(tmp_path / "alone", ranks=1)
    for engine in ("ddp", "fsdp2", "zero2"):
        shared = first(tmp_path / engine, f"parallelism.engine={engine}", ranks=2)
        assert shared == pytest.approx(alone, rel=1e-5), engine
