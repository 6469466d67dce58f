# SPDX-License-Identifier: Apache-2.0
"""AHPA's remedies on a real Trainer: blocks and grids per group, whitening, balance, routers,
the moving average as a teacher.
"""

from __future__ import annotations

import json
import logging

import pytest
import torch
from alignments import nested
from composer.core import Callback
from composer.loggers import InMemoryLogger
from conftest import LEVELS
from toy_trainer import newest

from ahpa_scale.algorithms import EMA
from ahpa_scale.algorithms.ahpa import AHPA, read_gap_map, self_groups
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.method import GapMap
from ahpa_scale.method.gap import MeasuredGap, OnlineGap

FINE, MIDDLE, COARSE = "local_geometry", "spatial_topology", "coarse_layout"


def ahpa(**settings) -> AHPA:
    return AHPA(LEVELS, **nested({"head_width": 32, "log_interval": "2ba", **settings}))


def statistics() -> dict[str, torch.Tensor]:
    widths = {**LEVELS, "latent": 16}
    means = {f"{name}.mean": torch.zeros(width) for name, width in widths.items()}
    return means | {f"{name}.covariance": torch.eye(width) * 4 for name, width in widths.items()}


def a_map(blocks: tuple[int, ...] = (1, 2, 3)) -> GapMap:
    r2_LDT = torch.rand(3, len(blocks), 4, generator=torch.Generator().manual_seed(0))
    return GapMap(tuple(LEVELS), blocks, r2_LDT)


class Gradients(Callback):
    """Notes which of the DiT's blocks the alignment alone moves."""

    def after_loss(self, state, logger) -> None:
        model = state.model
        loss = state.outputs["auxiliary"]["alignment"]
        params = [next(block.parameters()) for block in model.dit.blocks]
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        self.reached = [g is not None for g in grads]


@pytest.mark.parametrize(
    ("tap", "blocks", "reached"),
    [
        ({COARSE: 3, MIDDLE: 2}, [1, 2, 3], [True, True, True]),
        ({COARSE: 2}, [1, 1, 2], [True, True, False]),
        (2, [2, 2, 2], [True, True, False]),
    ],
)
def test_groups_are_aligned_at_their_own_blocks(tap, blocks, reached, make_generator, make_trainer):
    model, seen = make_generator(), Gradients()
    make_trainer(model, algorithms=[ahpa(tap=tap)], callbacks=[seen], max_duration="2ba").fit()
    assert seen.reached == reached
    module = model.attachments["alignment"]
    assert list(module.taps or (2, 2, 2)) == blocks


def test_grids_and_whitening_shape_the_targets(make_generator):
    dit = make_generator().dit
    design = ahpa(grid={COARSE: 1, MIDDLE: 2}, whiten=10, statistics=statistics())
    module = design.build(dit)
    batch = {f"prior.{name}": torch.randn(2, width, 4, 4) for name, width in LEVELS.items()}
    shapes = [tuple(y.shape[1:]) for y in module.targets(batch)]
    assert shapes == [(16, 8), (4, 10), (1, 10)]
    assert module.targets.spatial_norm is None, "whitened targets need no other normalisation"
    (latent,) = AHPA(LEVELS, kind="latent", whiten=5, statistics=statistics()).build(dit).heads
    assert latent[-1].out_features == 5


def test_resuming_with_everything_on_is_exact(make_generator, make_trainer, tmp_path):
    def algorithms() -> list:
        chosen = ahpa(
            gradient_ratio=0.3,
            tap={COARSE: 2},
            objective="gap",
            token_weights="residual",
            whiten=6,
            statistics=statistics(),
            until="4ba",
            ramp="6ba",
        )
        return [chosen, EMA(decay=0.5)]

    straight = make_generator()
    make_trainer(straight, algorithms=algorithms(), max_duration="8ba").fit()
    make_trainer(
        make_generator(),
        algorithms=algorithms(),
        max_duration="5ba",
        callbacks=[Saver(str(tmp_path / "saved"), "5ba")],
    ).fit()
    resumed, start = make_generator(seed=9), [newest(tmp_path / "saved")]
    make_trainer(resumed, algorithms=algorithms(), max_duration="8ba", callbacks=start).fit()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert straight.weight("alignment") == resumed.weight("alignment") == pytest.approx(0.5)


def test_resuming_with_other_grids_or_whitening_is_refused(make_generator, make_trainer, tmp_path):
    def start(path: str | None = None, **settings) -> None:
        algorithm = ahpa(**{"whiten": 6, "statistics": statistics(), **settings})
        make_trainer(
            make_generator(),
            algorithms=[algorithm],
            max_duration="1ba",
            save_folder=None if path else str(tmp_path),
            save_filename="one.pt",
            load_path=path,
        ).fit()

    start()
    path = str(tmp_path / "one.pt")
    with pytest.raises(ValueError, match=r"alignment.grid=None, this run has {'coarse_layout': 2}"):
        start(path, grid={COARSE: 2})
    for whiten in (5, None):
        with pytest.raises(ValueError, match=f"whitened to 6 dimensions, this run's to {whiten}"):
            start(path, whiten=whiten)


def test_the_gradients_balance_is_logged_and_replaces_the_weight(make_generator, make_trainer):
    memory, model = InMemoryLogger(), make_generator()
    trainer = make_trainer(model, algorithms=[ahpa(gradient_ratio=0.25)], loggers=[memory])
    trainer.fit()
    ratio = memory.data["alignment/gradient_ratio"][-1][1]
    factor = memory.data["alignment/factor"][-1][1]
    assert ratio * factor == pytest.approx(0.25, rel=1e-4)
    assert model.weight("alignment") == 1.0


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"objective": "gap"}, OnlineGap),
        ({"objective": "gap", "gap_map": a_map()}, MeasuredGap),
    ],
)
def test_the_gap_comes_online_or_from_a_map(settings, target, make_generator, make_trainer):
    model = make_generator()
    make_trainer(model, algorithms=[ahpa(**settings)]).fit()
    module = model.attachments["alignment"]
    assert isinstance(module.router_target, target)
    assert module.router.mlp[-1].weight.abs().sum() > 0
    if target is MeasuredGap:
        expected_GT = a_map().gap(module.groups, [1, 1, 1])
        assert torch.equal(module.router_target.gap_GT, expected_GT)


def test_a_schedule_is_as_sharp_as_it_is_told(make_generator):
    dit = make_generator().dit
    soft, sharp = (AHPA(LEVELS, kind="scheduled", sharpness=s).build(dit).router for s in (1.0, 9))
    t_B = torch.tensor([0.9])
    assert sharp(t_B)[0, -1] > soft(t_B)[0, -1]


@pytest.mark.parametrize(
    ("depth", "tap", "blocks"),
    [(12, 3, [6, 8, 11]), (28, 7, [14, 19, 27]), (6, 2, [3, 4, 5]), (3, 1, [2]), (2, 1, [2])],
)
def test_self_levels_lie_behind_the_tap(depth: int, tap: int, blocks: list[int]):
    assert self_groups(depth, tap) == {f"self.{b}": (f"self.{b}",) for b in blocks}


def test_the_moving_average_teaches_beside_the_vae(make_generator, make_trainer):
    groups = {"fine": [next(iter(LEVELS))], "own": ["self.3"]}
    model = make_generator()
    make_trainer(model, algorithms=[ahpa(groups=groups, tap=2), EMA(decay=0.5)]).fit()
    module = model.attachments["alignment"]
    assert [head[-1].out_features for head in module.heads] == [8, model.dit.width]
    with pytest.raises(ValueError, match=r"add the EMA algorithm \(ema.decay\)"):
        make_trainer(make_generator(), algorithms=[ahpa(kind="self")])


def test_self_lead_reaches_the_teacher(make_generator, make_trainer):
    losses = []
    for lead in (0.0, 0.9):
        trainer = make_trainer(
            make_generator(),
            algorithms=[ahpa(kind="self", self_lead=lead), EMA(decay=0.5)],
            max_duration="1ba",
        )
        trainer.fit()
        losses.append(float(trainer.state.outputs["auxiliary"]["alignment"]))
    assert losses[0] != losses[1]


def test_a_placebo_trains_on_other_targets(make_generator, make_trainer):
    losses = []
    for placebo in (False, True):
        trainer = make_trainer(
            make_generator(), algorithms=[ahpa(placebo=placebo)], max_duration="1ba"
        )
        trainer.fit()
        losses.append(float(trainer.state.outputs["auxiliary"]["alignment"]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("objective", "floor"), [("literal", 0.0), ("gap", 0.0), ("standardised", 0.05)]
)
def test_a_collapsed_router_is_warned_of_once(objective, floor, make_trainer, caplog):
    memory = InMemoryLogger()
    # This prior alone puts all the weight on one level.
    chosen = ahpa(objective=objective, snr_prior=200.0, floor=floor)
    with caplog.at_level(logging.WARNING, logger="ahpa_scale"):
        make_trainer(algorithms=[chosen], loggers=[memory]).fit()
    lines = [r.message for r in caplog.records if "the router has collapsed" in r.message]
    assert len(lines) == 1
    assert len(memory.data["alignment/warning_router_collapsed"]) == 1
    assert len(memory.data["alignment/router_entropy"]) == 2


def test_a_healthy_router_and_one_told_to_select_are_not_warned_of(make_trainer, caplog):
    for settings in ({}, {"top_k": 1}):
        with caplog.at_level(logging.WARNING, logger="ahpa_scale"):
            make_trainer(algorithms=[ahpa(**settings)]).fit()
    assert not [r for r in caplog.records if r.name.startswith("ahpa_scale")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.5, "gradient_ratio": 0.3}, "both weight and gradient_ratio"),
        ({"gap_strength": True}, "gap_strength needs objective='gap'"),
        ({"objective": "gaps"}, "unknown router objective 'gaps'"),
        ({"groups": {"x": ["self.2"]}, "whiten": 4}, "'self.2' changes as it trains"),
    ],
)
def test_settings_that_cannot_be_are_named_at_once(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AHPA(LEVELS, **nested(settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tap": {"coarse": 2}}, "tap names the group 'coarse'; there are local_geometry"),
        ({"grid": {"coarse": 2}}, "grid names the group 'coarse'"),
        ({"grid": {COARSE: 9}}, "a grid of 9 must lie between 1 and 4"),
        ({"whiten": 4}, "needs the data set's statistics of 'encoder.down_blocks.0.resnets.0'"),
        ({"groups": {"x": ["self.1"]}, "tap": 2}, "self.3 to self.3"),
        ({"groups": {"x": ["self.4"]}}, "'self.4' must be a block behind"),
        ({"objective": "gap", "gap_map": a_map((2, 3))}, "the map has no block 1"),
    ],
)
def test_what_does_not_fit_the_model_is_named(settings: dict, message: str, make_generator):
    with pytest.raises(ValueError, match=message):
        ahpa(**settings).build(make_generator().dit)


def test_a_map_is_read_from_what_diagnose_writes(tmp_path):
    path = tmp_path / "recoverability.json"
    r2_LDT = [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]]
    content = {"levels": ["a"], "blocks": [1, 2, 4], "bins": 2, "r2_LDT": r2_LDT}
    path.write_text(json.dumps({**content, "pictures": 9, "source": "vae"}))
    found = read_gap_map(path)
    assert (found.levels, found.blocks) == (("a",), (1, 2, 4))
    torch.testing.assert_close(found.r2_LDT, torch.tensor(r2_LDT))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"levels": 3}',
        '{"levels": ["a"], "blocks": [1], "bins": 2, "r2_LDT": [[[0.1]]]}',
        '{"levels": ["a"], "blocks": [1], "bins": 1, "r2_LDT": [[[NaN]]]}',
    ],
)
def test_a_broken_map_is_refused_by_its_path(text: str, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"map.json is not a recoverability map"):
        read_gap_map(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_gap_map(tmp_path / "nothing.json")
