# SPDX-License-Identifier: Apache-2.0
"""GradClip: norms per part, against hand arithmetic and torch's own clipping."""

from __future__ import annotations

import pytest
import torch
from composer import Callback
from composer.loggers import InMemoryLogger
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_trainer import ToyGenerator, clone_weights, toy_trainer

from ahpa_scale.algorithms.grad_clip import GradClip, clip_groups, parameter_groups


def with_gradient(*values: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


@settings(max_examples=50)
@given(
    scales=st.tuples(*[st.floats(1e-3, 1e3)] * 2),
    max_norm=st.floats(1e-2, 1e2),
)
def test_each_group_meets_the_bound_and_keeps_its_direction(scales, max_norm):
    groups = {
        name: [with_gradient(3.0 * scale, 0.0), with_gradient(-4.0 * scale)]
        for name, scale in zip("ab", scales, strict=True)
    }
    norms = clip_groups(groups, max_norm)
    for name, scale in zip("ab", scales, strict=True):
        assert norms[name].item() == pytest.approx(5 * scale, rel=1e-5)
        factor = min(1.0, max_norm / (5 * scale))
        first, second = (parameter.grad for parameter in groups[name])
        torch.testing.assert_close(
            first, torch.tensor([3.0 * scale * factor, 0.0]), rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(
            second, torch.tensor([-4.0 * scale * factor]), rtol=1e-3, atol=1e-6
        )


def test_parameters_without_gradient_are_left_out():
    idle = nn.Parameter(torch.ones(2))
    norms = clip_groups({"a": [with_gradient(3.0, 4.0), idle], "b": [idle]}, 100.0)
    assert set(norms) == {"a"}
    assert norms["a"].item() == pytest.approx(5.0)
    assert idle.grad is None


def test_groups_of_a_generator_and_of_any_model():
    model = ToyGenerator()
    groups = parameter_groups(model)
    assert set(groups) == {"backbone", "attachments.alignment"}
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    assert set(parameter_groups(ToyGenerator(aligned=False))) == {"backbone"}
    assert [p.shape for p in parameter_groups(nn.Linear(2, 3))["backbone"]] == [(3, 2), (3,)]


def test_heads_do_not_change_how_the_backbone_is_trained():
    """The head's gradient is a thousand times the backbone's; one norm would stop the backbone."""
    weights = []
    for model in (ToyGenerator(aligned=False), ToyGenerator(head_scale=1e3)):
        trainer = toy_trainer("3ba", model=model, algorithms=GradClip(0.2))
        trainer.fit()
        weights.append(clone_weights(trainer.state.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_without_attachments_it_is_torchs_clipping():
    class Clipped(Callback):
        def after_train_batch(self, state, logger):
            nn.utils.clip_grad_norm_(state.model.parameters(), 0.1)

    trainers = [
        toy_trainer("3ba", model=ToyGenerator(aligned=False), algorithms=GradClip(0.1)),
        toy_trainer("3ba", model=ToyGenerator(aligned=False), callbacks=Clipped()),
        toy_trainer("3ba", model=ToyGenerator(aligned=False)),
    ]
    for trainer in trainers:
        trainer.fit()
    ours, torchs, unclipped = (
        clone_weights(trainer.state.model)["dit.mix.weight"] for trainer in trainers
    )
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    assert not torch.equal(ours, unclipped)


def test_norms_are_logged_at_their_interval_only():
    log = InMemoryLogger()
    toy_trainer("5ba", algorithms=GradClip(1.0, log_interval="2ba"), loggers=log).fit()
    for key in ("grad_norm/backbone", "grad_norm/attachments"):
        # Two of five: the batches that bring the count to 2 and 4.
        assert [time.batch.value for time, _ in log.data[key]] == [1, 3]
        assert all(isinstance(value, float) and value > 0 for _, value in log.data[key])


def test_missing_gradients_are_reported():
    class NoGradients(Callback):
        def before_train_batch(self, state, logger):
            for parameter in state.model.dit.parameters():
                parameter.requires_grad_(False)

    with pytest.raises(ValueError, match="ZeRO"):
        toy_trainer("1ba", algorithms=GradClip(1.0), callbacks=NoGradients()).fit()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_bounds_are_refused(max_norm):
    with pytest.raises(ValueError, match="max_norm"):
        GradClip(max_norm)


def test_an_epoch_between_two_norms_is_one():
    log = InMemoryLogger()
    toy_trainer("2ep", algorithms=GradClip(1.0, log_interval="1ep"), loggers=log).fit()
    times = [time for time, _ in log.data["grad_norm/backbone"]]
    assert len(times) == 2
    assert times[1].batch.value == 2 * times[0].batch.value


def test_an_interval_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="log_interval is '1dur'"):
        GradClip(1.0, log_interval="1dur")
