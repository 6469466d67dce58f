# SPDX-License-Identifier: Apache-2.0
"""Levels self.<k> in the alignment section: which exist, where, and what they need."""

from __future__ import annotations

import pytest
from small_run import LEVELS

from ahpa_scale.config.load import to_yaml
from ahpa_scale.config.targets import resolve_targets

# XL/2: 28 blocks, tap 7.
OWN, MIXED = "alignment.kind=self", "alignment.kind=ahpa"


def test_self_brings_its_own_groups_behind_the_tap(load):
    run = load(OWN)
    assert list(resolve_targets(run, LEVELS).groups) == ["self.14", "self.19", "self.27"]
    deep = load(OWN, "alignment.tap=20")
    assert list(resolve_targets(deep, LEVELS).groups) == ["self.27"]
    assert resolve_targets(run, LEVELS).stored == ()


def test_named_self_levels_stay_apart_and_may_join_the_encoders(load):
    run = load(OWN, "alignment.levels=[self.9, self.12]")
    assert resolve_targets(run, LEVELS).groups == {"self.9": ("self.9",), "self.12": ("self.12",)}
    levels = [LEVELS[0], "encoder.mid_block", "self.14", "self.20"]
    mixed = load(MIXED, f"alignment.levels=[{', '.join(levels)}]")
    targets = resolve_targets(mixed, LEVELS)
    assert [list(members) for members in targets.groups.values()] == [[name] for name in levels]
    assert targets.stored == (LEVELS[0], "encoder.mid_block")
    grouped = load(MIXED, "alignment.groups={near: [latent], far: [self.14, self.20]}")
    assert resolve_targets(grouped, LEVELS).groups["far"] == ("self.14", "self.20")
    single = load("alignment.kind=single", "alignment.level=self.20")
    assert resolve_targets(single, LEVELS).groups == {"self.20": ("self.20",)}


def test_a_run_against_itself_survives_the_round_trip(load, tmp_path):
    run = load(OWN, "alignment.tap=20")
    assert load(text=to_yaml(run)) == run


def test_each_group_is_measured_by_its_own_tap(load, complaint):
    groups = "alignment.groups={near: [self.5], far: [self.20]}"
    load(OWN, groups, "alignment.tap={near: 3, far: 12}")
    line = complaint(OWN, groups, "alignment.tap={near: 5, far: 12}")
    assert "alignment.groups: 'self.5' does not lie behind block 5" in line
    assert "self.6 to self.28" in line
    # The kind's own tap, 7, holds for a group that is not named.
    assert "'self.5' does not lie" in complaint(OWN, groups, "alignment.tap={far: 12}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([OWN, "ema.decay=null"], ["ema.decay", "'self.14' is a block of the moving average"]),
        ([OWN, "alignment.levels=[self.29]"], ["alignment.levels", "self.1 to self.28"]),
        ([OWN, "alignment.levels=[self.0]"], ["alignment.levels", "self.1 to self.28"]),
        ([OWN, "alignment.levels=[self.x]"], ["alignment.levels", "'self.x' is no block"]),
        ([OWN, "alignment.levels=[self.7]"], ["alignment.levels", "does not lie behind block 7"]),
        ([OWN, "alignment.levels=[self.9, self.9]"], ["'self.9' is named twice"]),
        ([OWN, "alignment.levels=[self.9, self.8]"], ["must run from fine to coarse"]),
        ([OWN, f"alignment.levels=[{LEVELS[0]}]"], ["alignment.levels", "alignment.kind=ahpa mix"]),
        ([OWN, "alignment.groups={a: [latent]}"], ["alignment.groups.a", "alone"]),
        ([OWN, "alignment.groups={self.9: [self.9]}"], ["alignment.groups", "name of a level"]),
        ([OWN, "alignment.tap=28"], ["alignment.kind", "there are 28"]),
        ([OWN, "alignment.router.top_k=4"], ["alignment.router.top_k", "3 groups"]),
        (["alignment.kind=single", "alignment.level=self.30"], ["alignment.level", "self.28"]),
        (["alignment.kind=single", "alignment.level=self.3"], ["does not lie behind block 7"]),
        (
            [MIXED, "alignment.levels=[encoder.mid_block, self.4]"],
            ["alignment.levels: 'self.4' does not lie behind block 7"],
        ),
    ],
)
def test_impossible_self_levels_earn_one_line(complaint, overrides, words):
    line = complaint(*overrides)
    for word in words:
        assert word in line


def test_a_vae_that_is_not_known_leaves_them_checked(complaint):
    unknown = "vae.path=some/where"
    assert "self.28" in complaint(OWN, unknown, "alignment.levels=[self.40]")
    assert "ema.decay" in complaint(OWN, unknown, "ema.decay=null")
