# SPDX-License-Identifier: Apache-2.0
"""EMA: the average against hand arithmetic, over resumes, evaluations and wrappers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from composer.devices import DeviceCPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_trainer import Recorder, ToyGenerator, clone_weights, newest, toy_loader, toy_trainer

from ahpa_scale.algorithms.ema import EMA, plain_name, tracked_parameters, update_ema
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.errors import UserError
from ahpa_scale.run.build import build_algorithms

AVERAGED = ["dit.mix.weight", "dit.mix.bias", "dit.label.weight"]


def by_hand(weights: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The average of recorded weights, one tensor and one step at a time."""
    average = {name: weights[0][name].clone() for name in AVERAGED}
    for later in weights[1:]:
        for name in AVERAGED:
            average[name] = average[name].lerp(later[name], 1.0 - decay)
    return average


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, msg=name)


@settings(max_examples=25)
@given(
    decay=st.floats(0.0, 1.0),
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8),
    start=st.floats(-10, 10, width=32),
)
def test_update_is_the_closed_form(decay, values, start):
    shadow = [torch.full((2, 3), start), torch.full((1,), -start)]
    for value in values:
        update_ema(shadow, [torch.full((2, 3), value), torch.full((1,), -value)], decay)
    last = len(values) - 1
    expected = start * decay ** len(values)
    expected += sum((1 - decay) * decay ** (last - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(shadow[0], torch.full((2, 3), expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shadow[1], -shadow[0][0, :1], rtol=0, atol=0)


def test_average_of_bfloat16_weights_keeps_small_steps():
    model = nn.Linear(3, 3).bfloat16()
    ema = EMA(decay=0.9999)
    with ema.applied(model):
        pass
    before = ema.shadow["weight"].clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        model.weight += 1.0
    update_ema([ema.shadow["weight"]], [model.weight], 0.9999)
    moved = ema.shadow["weight"] - before
    torch.testing.assert_close(moved, (model.weight.float() - before) * 1e-4, rtol=0.01, atol=1e-7)
    assert moved.abs().min() > 0


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({}, 0.9999),
        ({"decay": 0.5}, 0.5),
        ({"half_life": "3ba"}, 0.5 ** (1 / 3)),
        ({"half_life": "20sp"}, 0.5 ** (4 / 20)),
        ({"half_life": "2ep"}, 0.5 ** (1 / 12)),
    ],
)
def test_trainer_keeps_the_hand_computed_average(options, decay):
    ema, recorder = EMA(**options), Recorder()
    toy_trainer("8ba", algorithms=ema, callbacks=recorder).fit()
    assert ema.updates == 8
    assert list(ema.shadow) == AVERAGED
    expected = by_hand(recorder.weights, decay)
    for name in AVERAGED:
        assert not torch.equal(expected[name], recorder.weights[-1][name])
        tolerance = 0 if "half_life" not in options else 1e-6
        torch.testing.assert_close(ema.shadow[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("interval", "kept"), [("2ba", [0, 2, 4, 6]), ("1ep", [0, 6]), ("8sp", [0, 2, 4, 6])]
)
def test_updates_come_at_their_interval(interval, kept):
    ema, recorder = EMA(half_life="4ba", update_interval=interval), Recorder()
    toy_trainer("6ba", algorithms=ema, callbacks=recorder).fit()
    step = kept[1]
    expected = by_hand([recorder.weights[i] for i in kept], 0.5 ** (step / 4))
    for name in AVERAGED:
        torch.testing.assert_close(ema.shadow[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"decay": 0.9}, {"half_life": "10sp", "update_interval": "2ba"}]
)
def test_resume_continues_the_same_average(tmp_path, options):
    whole = EMA(**options)
    toy_trainer("8ba", algorithms=whole).fit()
    saved = tmp_path / "saved"
    toy_trainer("3ba", algorithms=EMA(**options), callbacks=Saver(str(saved), "3ba")).fit()
    resumed = EMA(**options)
    toy_trainer("8ba", algorithms=resumed, callbacks=newest(saved)).fit()
    assert resumed.updates == whole.updates
    assert_same(resumed.shadow, whole.shadow)


def test_composers_weights_begin_the_average_anew(tmp_path):
    toy_trainer("4ba", save_folder=str(tmp_path)).fit()
    ema, recorder = EMA(decay=0.5), Recorder()
    path = str(tmp_path / "latest-rank0.pt")
    toy_trainer(
        "2ba", algorithms=ema, callbacks=recorder, load_path=path, load_weights_only=True
    ).fit()
    assert_same(ema.shadow, by_hand(recorder.weights, 0.5))


def test_composers_checkpoints_are_refused_before_averages_are_lost(tmp_path):
    message = (
        r"can't hold EMA's averages: leave save_folder .* ahpa_scale\.checkpoint\.saver\.Saver"
    )
    with pytest.raises(UserError, match=message):
        toy_trainer("1ba", algorithms=EMA(), save_folder=str(tmp_path))
    trainer = toy_trainer("1ba", algorithms=EMA())
    with pytest.raises(UserError, match=message):
        trainer.save_checkpoint(str(tmp_path / "one.pt"))
    with pytest.raises(UserError, match=message):
        EMA().load_state_dict({"shadow": {}})


def test_averages_of_another_model_are_refused():
    ema = EMA()
    toy_trainer("1ba", algorithms=ema).fit()
    with (
        pytest.raises(UserError, match=r"no average of '0\.weight'"),
        ema.applied(nn.Sequential(nn.Linear(2, 2))),
    ):
        pass
    del ema.shadow["dit.mix.bias"]
    with pytest.raises(UserError, match="another model"):
        toy_trainer("2ba", algorithms=ema)


def test_composers_evaluation_never_judges_the_weights_in_place_of_the_average():
    ema, recorder = EMA(decay=0.7), Recorder()
    options = {"algorithms": ema, "callbacks": recorder}
    message = "not EMA's averages: leave eval_dataloader out"
    with pytest.raises(UserError, match=message):
        toy_trainer("6ba", eval_dataloader=toy_loader(1), eval_interval="3ba", **options).fit()
    assert not recorder.weights[1:], "told before anything is trained"
    recorder.weights.clear()
    trainer = toy_trainer("6ba", **options)
    trainer.fit()
    with pytest.raises(UserError, match=message):
        trainer.eval(toy_loader(1))


def test_an_evaluation_inside_applied_runs_with_the_average_and_leaves_no_trace():
    ema, recorder = EMA(decay=0.7), Recorder()
    trainer = toy_trainer("6ba", algorithms=ema, callbacks=recorder)
    trainer.fit()
    with ema.applied(trainer.state.model):
        trainer.eval(toy_loader(1))
    (evaluated,) = recorder.evaluated
    assert_same({n: evaluated[n] for n in AVERAGED}, by_hand(recorder.weights, 0.7))
    head = "attachments.alignment.weight"
    torch.testing.assert_close(evaluated[head], recorder.weights[-1][head], rtol=0, atol=0)
    assert_same(clone_weights(trainer.state.model), recorder.weights[-1])
    assert not ema.active


def test_applied_gives_the_weights_back_after_an_error_and_nests():
    model, ema = ToyGenerator(), EMA(decay=0.5)
    with ema.applied(model):
        pass
    with torch.no_grad():
        model.dit.mix.weight.add_(1.0)
    update_ema(
        list(ema.shadow.values()), list(tracked_parameters(model, ema.exclude).values()), 0.5
    )
    ema.updates = 1
    before = clone_weights(model)

    def fail_inside():
        with ema.applied(model), ema.applied(model):
            torch.testing.assert_close(model.dit.mix.weight, before["dit.mix.weight"] - 0.5)
            raise KeyError("in the context")

    with pytest.raises(KeyError):
        fail_inside()
    assert_same(clone_weights(model), before)
    assert not ema.active


def test_averages_are_the_live_tensors_under_the_backbones_own_names():
    ema = EMA(decay=0.5)
    with pytest.raises(ValueError, match="no averages of the backbone yet"):
        ema.averages()
    toy_trainer("2ba", algorithms=ema).fit()
    averages = ema.averages()
    assert list(averages) == ["mix.weight", "mix.bias", "label.weight"]
    assert all(averages[name] is ema.shadow[f"dit.{name}"] for name in averages)


def test_names_do_not_depend_on_wrappers():
    assert (
        plain_name("module.dit.blocks.0._orig_mod.mlp.fc1.weight") == "dit.blocks.0.mlp.fc1.weight"
    )
    assert (
        plain_name("dit.blocks.1._checkpoint_wrapped_module.norm.bias") == "dit.blocks.1.norm.bias"
    )
    model = ToyGenerator()
    names = list(tracked_parameters(model, ("attachments.",)))
    assert names == AVERAGED
    model.dit = torch.compile(model.dit, backend="eager")
    assert list(tracked_parameters(model, ("attachments.",))) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay is 1\.0"),
        ({"decay": 0.9, "half_life": "5ba"}, "one of them"),
        ({"half_life": "5"}, "half_life is '5'"),
        ({"half_life": "0ba"}, "half_life is '0ba'"),
        ({"update_interval": "0.5dur"}, "update_interval is '0.5dur'"),
        ({"update_interval": "1.5ba"}, "update_interval is '1.5ba'"),
    ],
)
def test_wrong_options_say_what_to_give(options, message):
    with pytest.raises(ValueError, match=message):
        EMA(**options)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no parameters"):
        tracked_parameters(nn.ReLU())


def test_the_section_reaches_the_plug_in(load):
    def built(*words: str) -> list[tuple[float, str | None]]:
        targets: Any = SimpleNamespace(groups={})
        plug_ins = build_algorithms(load(*words), Mock(), targets, DeviceCPU())
        return [
            (plug_in.decay, plug_in.half_life and plug_in.half_life.to_timestring())
            for plug_in in plug_ins
            if isinstance(plug_in, EMA)
        ]

    assert built() == [(0.9999, None)]
    assert built("ema.decay=0.9") == [(0.9, None)]
    assert [half_life for _, half_life in built("ema.decay=20sp")] == ["20sp"]
    assert built("ema.decay=null") == []
