# SPDX-License-Identifier: Apache-2.0
"""The alignment section's remedies: what fits together, what would do nothing, what reaches the
plug-in.
"""

from __future__ import annotations

import json
import shutil

import pytest
from small_run import SMALL

from ahpa_scale.config.load import to_yaml

AHPA = "alignment.kind=ahpa"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["alignment.tap={coarse: 3}"], ["alignment.tap.coarse: no group", "coarse_layout"]),
        (["alignment.tap={coarse_layout: 29}"], ["alignment.tap.coarse_layout: 29 lies", "28"]),
        (["alignment.tap={coarse_layout: 0}"], ["alignment.tap: 0 must be at least 1"]),
        (["alignment.tap={}"], ["alignment.tap: {} is neither a block's number"]),
        (["alignment.tap=true"], ["alignment.tap: True is neither"]),
        (["alignment.tap=[1, 2]"], ["alignment.tap: [1, 2] is neither"]),
        (["alignment.grid={coarse: 4}"], ["alignment.grid.coarse: no group 'coarse'"]),
        (
            ["alignment.grid={coarse_layout: 17}", "model.input_size=32"],
            ["alignment.grid.coarse_layout: 17", "16x16"],
        ),
        (["alignment.grid={coarse_layout: 0}"], ["alignment.grid.coarse_layout: 0 must be"]),
        (
            ["alignment.grid={coarse_layout: 1}", "alignment.spatial_norm=1.0"],
            ["alignment.grid.coarse_layout: 1 keeps only the token mean"],
        ),
        (
            ["alignment.groups={a: [self.9]}", "alignment.whiten=64"],
            ["alignment.whiten: 'self.9' changes as it trains"],
        ),
        (["alignment.window=[0.9, 0.5]"], ["alignment.window: must be two noise levels"]),
        (["alignment.window=[0.5]"], ["alignment.window"]),
        (["alignment.gradient_ratio=0.0"], ["alignment.gradient_ratio: 0.0 must be above 0"]),
        (["alignment.until=soon"], ["alignment.until: 'soon' needs one of", "write 'measured'"]),
        (
            ["alignment.until=measured", "alignment.ramp=3"],
            ["alignment.ramp: '3' needs one of the units"],
        ),
    ],
)
def test_impossible_remedies_earn_one_line(complaint, overrides, words):
    line = complaint(AHPA, *overrides)
    assert line.startswith("command line: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("ahpa", ["alignment.weight=0.3", "alignment.gradient_ratio=0.3"]),
        ("ahpa", ["alignment.ramp=0.1dur"]),
        ("ahpa", ["alignment.reverse=true"]),
        ("ahpa", ["alignment.router.gap_strength=true"]),
        ("ahpa", ["alignment.router.gap_map=map.json"]),
        ("uniform", ["alignment.router.objective=gap"]),
        ("none", ["alignment.until=measured"]),
        ("none", ["alignment.placebo=true"]),
        ("latent", ["alignment.reverse=true"]),
    ],
)
def test_a_remedy_without_effect_is_refused(complaint, kind: str, items: list[str]):
    line = complaint(f"alignment.kind={kind}", *items)
    assert line.startswith(f"command line: {items[0].partition('=')[0]}: ")
    assert "no effect" in line


def test_defaults_follow_the_remedies(load):
    plain = load(AHPA).alignment
    assert (plain.spatial_norm, plain.weight) == (0.6, 0.5)
    assert load(AHPA, "alignment.whiten=64").alignment.spatial_norm is None
    kept = load(AHPA, "alignment.whiten=64", "alignment.spatial_norm=0.6").alignment
    assert kept.spatial_norm == 0.6
    balanced = load(AHPA, "alignment.gradient_ratio=0.3")
    assert balanced.alignment.weight is None
    gap = load(AHPA, "alignment.router.objective=gap").alignment.router
    assert (gap.floor, gap.prior_weight, gap.snr_prior) == (0.05, 0.0, 0.0)
    own = load("alignment.kind=self").alignment
    assert (own.tap, own.weight, own.spatial_norm, own.router.floor) == (7, 0.5, None, 0.05)
    measured = load(AHPA, "alignment.until=measured")
    assert measured.alignment.ramp == "0.125dur"
    assert load(AHPA, "alignment.until=50ba").alignment.ramp is None
    for config in (balanced, load("alignment.kind=self"), measured):
        assert load(text=to_yaml(config)) == config


def test_a_baseline_stays_one_override_away(load):
    text = SMALL + (
        "alignment: {kind: ahpa, gradient_ratio: 0.3, until: measured, ramp: 3ba, whiten: 64,\n"
        "  tap: {coarse_layout: 5}, grid: {coarse_layout: 4}, router: {objective: gap}}\n"
    )
    assert load("alignment.kind=none", text=text).alignment == load().alignment
    uniform = load("alignment.kind=uniform", text=text).alignment
    assert (uniform.gradient_ratio, uniform.whiten, uniform.tap) == (0.3, 64, {"coarse_layout": 5})
    assert uniform.router == load().alignment.router


@pytest.fixture
def plug_in(load, prepared, vae_path):
    """Builds the plug-in for the random VAE's data set, as training does."""
    from ahpa_scale.config.checks.data import check_data
    from ahpa_scale.data.card import read_card
    from ahpa_scale.run.alignment import build_alignment

    def build(*overrides: str, data: object = prepared):
        text = f"run_name: a\nmax_duration: 9ba\ndata: {{local: {data}}}\n"
        text += f"vae: {{path: {vae_path}}}\n"
        text += "model: {name: tiny/2, input_size: 4, in_channels: 4, num_classes: 3}\n"
        config, card = load(*overrides, text=text), read_card(prepared)
        return build_alignment(config, card, check_data(config, card))

    return build


def test_every_remedy_reaches_the_plug_in(plug_in):
    from ahpa_scale.method import Plateau

    ahpa = plug_in(
        AHPA,
        "alignment.tap={coarse_layout: 3}",
        "alignment.grid={coarse_layout: 1}",
        "alignment.whiten=5",
        "alignment.token_weights=residual",
        "alignment.gradient_ratio=0.3",
        "alignment.until=measured",
        "alignment.ramp=3ba",
        "alignment.placebo=true",
        "alignment.router.objective=gap",
    )
    module = ahpa.build(dit())
    assert module.taps == (2, 2, 3)
    assert module.targets.grids == (2, 2, 1)
    assert module.targets.of_another
    assert {one.dims for one in module.targets.whitening} == {5}
    assert not module._loss.uniform
    assert module.balance.share == 0.3
    assert ahpa.settings.release.ramp == "3ba"
    assert isinstance(module.trend.plateau, Plateau)
    assert (ahpa.settings.until, ahpa.settings.ramp) == (None, None), "no time of its own"
    timed = plug_in(AHPA, "alignment.until=5ba", "alignment.ramp=3ba").settings
    assert (timed.until, timed.ramp, timed.release) == ("5ba", "3ba", None)
    reverse = plug_in("alignment.kind=scheduled", "alignment.reverse=true")
    assert reverse.build(dit()).router.slope_G.max() == 3


def dit():
    from ahpa_scale.models.dit import build_dit

    return build_dit("tiny/2", input_size=4, num_classes=3)


def test_whitening_uses_the_data_sets_own_statistics(plug_in, prepared, tmp_path):
    from ahpa_scale.config.errors import ConfigError
    from ahpa_scale.data.card import PRIOR_STATISTICS, read_prior_statistics

    ahpa = plug_in(AHPA, "alignment.whiten=5")
    whitening = ahpa.build(dit()).targets.whitening
    statistics = read_prior_statistics(prepared)
    level = next(iter(ahpa.design.groups.values()))[0]
    assert (whitening[0].mean_C == statistics[f"{level}.mean"]).all()
    old = shutil.copytree(
        prepared, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors")
    )
    with pytest.raises(ConfigError, match=f"alignment.whiten: .* no statistics of '{level}'"):
        plug_in(AHPA, "alignment.whiten=5", data=old)
    (old / PRIOR_STATISTICS).write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"alignment.whiten: .*prepare the data again"):
        plug_in(AHPA, "alignment.whiten=5", data=old)


def test_the_map_is_checked_before_training(plug_in, tmp_path):
    from ahpa_scale.config.errors import ConfigError

    path = tmp_path / "map.json"
    gap = [AHPA, "alignment.router.objective=gap", f"alignment.router.gap_map={path}"]
    with pytest.raises(ConfigError, match=r"alignment.router.gap_map: there is no file"):
        plug_in(*gap)
    levels = [name for group in plug_in(AHPA).design.groups.values() for name in group]
    content = {"levels": levels, "blocks": [2, 6], "bins": 1}
    path.write_text(json.dumps({**content, "r2_LDT": [[[0.1], [0.4]]] * len(levels)}))
    gap.append("alignment.router.gap_strength=true")
    module = plug_in(*gap, "alignment.window=[0.5, 0.9]").build(dit())
    assert module.router_target.gap_GT.shape == (3, 1)
    assert module.gap_strength
    assert (module.window.low, module.window.high) == (0.5, 0.9)
    with pytest.raises(ConfigError, match=r"the map has no block 4.*the nearest is 2"):
        plug_in(*gap, "alignment.tap={coarse_layout: 4}")
