# SPDX-License-Identifier: Apache-2.0
"""The alignment section: its defaults, its groups, and settings that cannot be."""

from __future__ import annotations

import pytest
from small_run import LEVELS, SMALL

from ahpa_scale.config.load import to_yaml
from ahpa_scale.config.targets import resolve_targets


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["alignment.kind=ahpa", "alignment.tap=29"], ["alignment.tap: 29 lies behind", "28"]),
        (["alignment.kind=ahpa", "alignment.until=0ba"], ["alignment.until", "after"]),
        (
            ["alignment.kind=ahpa", "alignment.start=60ba", "alignment.until=0.5dur"],
            ["alignment.until: '0.5dur' must lie after alignment.start, '60ba'"],
        ),
        (["alignment.kind=ahpa", "alignment.start=200ba"], ["alignment.start", "before the end"]),
        (["alignment.kind=ahpa", "alignment.router.top_k=4"], ["alignment.router.top_k", "3"]),
        (["alignment.kind=ahpa", "alignment.router.floor=0.4"], ["below 0.333"]),
        (
            ["alignment.kind=ahpa", "alignment.levels=[encoder.midblock]"],
            ["alignment.levels", "did you mean 'encoder.mid_block'?"],
        ),
        (
            ["alignment.kind=ahpa", "alignment.levels=[latent, latent]"],
            ["alignment.levels: 'latent' is named twice"],
        ),
        (
            ["alignment.kind=ahpa", f"alignment.levels=[encoder.mid_block, {LEVELS[0]}]"],
            ["alignment.levels: must run from fine to coarse"],
        ),
        (
            ["alignment.kind=ahpa", "alignment.groups={a: [latent], b: [latent]}"],
            ["alignment.groups.b: 'latent' is in the group 'a' already"],
        ),
        (
            ["alignment.kind=uniform", "alignment.groups={latent: [encoder.mid_block]}"],
            ["alignment.groups.latent", "is the name of a level"],
        ),
        (
            ["alignment.kind=uniform", "alignment.groups={a: [encoder.middle]}"],
            ["alignment.groups.a", "did you mean 'encoder.mid_block'?"],
        ),
        (["alignment.kind=uniform", "alignment.groups={}"], ["alignment.groups: must name"]),
        (
            [
                "alignment.kind=ahpa",
                f"alignment.levels=[{LEVELS[0]}, encoder.mid_block]",
                "alignment.groups={a: [encoder.mid_block]}",
            ],
            [f"alignment.levels: '{LEVELS[0]}' is in none"],
        ),
        (["alignment.kind=single"], ["alignment.level", "such as alignment.level=latent"]),
        (
            ["alignment.kind=single", "alignment.level=coarse_layouts"],
            ["alignment.level", "did you mean 'coarse_layout'?"],
        ),
        (
            ["alignment.kind=single", "alignment.level=latent", "alignment.levels=[latent]"],
            ["alignment.levels: would have no effect"],
        ),
        (["alignment.kind=repa", "data.online=true"], ["alignment.kind: external features"]),
        (
            ["alignment.kind=single", "alignment.level=external", "data.online=true"],
            ["alignment.level: external features"],
        ),
    ],
)
def test_impossible_alignment_earns_one_line(complaint, overrides, words):
    line = complaint(*overrides)
    assert line.startswith("command line: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("none", "alignment.weight=0.3"),
        ("none", "alignment.router.top_k=2"),
        ("uniform", "alignment.router.floor=0.1"),
        ("uniform", "alignment.level=latent"),
        ("ahpa", "alignment.reverse=true"),
        ("latent", "alignment.levels=[latent]"),
        ("repa", "alignment.groups={a: [latent]}"),
        ("ahpa", "flow.logit_std=2.0"),
        ("ahpa", "checkpoint.keep=3"),
        ("ahpa", "data.cache_limit=1gb"),
    ],
)
def test_a_key_without_effect_is_refused(complaint, kind, item):
    line = complaint(f"alignment.kind={kind}", item)
    assert line.startswith(f"command line: {item.partition('=')[0]}: ")
    assert "no effect" in line


def test_a_switch_on_the_command_line_idles_keys_of_the_file(load, complaint):
    """A baseline is one override away, and what is saved says what was used."""
    text = SMALL + "alignment: {kind: ahpa, weight: 0.3, head: {width: 64}, router: {top_k: 2}}\n"
    control = load("alignment.kind=none", text=text)
    assert control.alignment == load("alignment.kind=none").alignment
    uniform = load("alignment.kind=uniform", text=text).alignment
    assert (uniform.weight, uniform.head.width) == (0.3, 64)
    assert uniform.router == load().alignment.router
    assert load(text=to_yaml(control)) == control
    both = complaint("alignment.kind=none", "alignment.weight=0.2", text=text)
    assert "no effect" in both
    in_file = complaint(text=text.replace("ahpa", "none"))
    assert "run.yaml:4: alignment.weight" in in_file


def test_a_linear_head_has_no_width(complaint):
    head = ["alignment.kind=ahpa", "alignment.head.kind=linear", "alignment.head.width=64"]
    assert "alignment.head.width: 64 would have no effect" in complaint(*head)


def test_defaults_of_a_kind_are_filled_in(load):
    taps = {
        (kind, size): load(f"alignment.kind={kind}", f"model.name={size}/2").alignment.tap
        for kind in ("ahpa", "latent", "repa")
        for size in ("tiny", "S", "B", "L", "XL")
    }
    assert [taps["ahpa", size] for size in ("tiny", "S", "B", "L", "XL")] == [2, 3, 3, 6, 7]
    assert {taps["latent", size] for size in ("tiny", "S", "B", "L", "XL")} == {2}
    assert [taps["repa", size] for size in ("tiny", "S", "B", "L", "XL")] == [2, 4, 4, 8, 8]
    latent, repa = (load(f"alignment.kind={kind}").alignment for kind in ("latent", "repa"))
    assert (latent.weight, latent.loss, latent.spatial_norm) == (1.0, "smooth_l1", None)
    assert (repa.weight, repa.loss, repa.spatial_norm) == (0.5, "cosine", None)
    velocity = load("alignment.kind=velocity").alignment
    assert (velocity.weight, velocity.loss, velocity.head.kind) == (0.5, "squared", "linear")
    spatial = load("alignment.kind=repa", "alignment.spatial_norm=0.6").alignment.spatial_norm
    assert spatial == 0.6, "an explicit value is kept"
    assert load().alignment.tap is None


def test_defaults_agree_with_the_plug_in(load):
    from ahpa_scale.algorithms.ahpa.kinds import KINDS
    from ahpa_scale.models.dit_config import DIT_SIZES

    for kind, plug_in in KINDS.items():
        level = ["alignment.level=coarse_layout"] if kind == "single" else []
        for size, shape in DIT_SIZES.items():
            chosen = load(f"alignment.kind={kind}", f"model.name={size}/2", *level).alignment
            assert chosen.tap == plug_in.tap(shape.depth), (kind, size)
            assert (chosen.weight, chosen.loss) == (plug_in.weight, plug_in.loss)
            assert chosen.spatial_norm == plug_in.spatial_norm


def test_groups_of_a_run(load):
    def groups(*overrides: str) -> dict[str, tuple[str, ...]]:
        return resolve_targets(load(*overrides), LEVELS).groups

    assert groups() == {}
    assert list(groups("alignment.kind=ahpa")) == [
        "local_geometry",
        "spatial_topology",
        "coarse_layout",
    ]
    assert groups("alignment.kind=latent") == {"latent": ("latent",)}
    assert groups("alignment.kind=repa") == {"external": ("external",)}
    single = "alignment.kind=single"
    assert groups(single, "alignment.level=coarse_layout") == {"coarse_layout": (LEVELS[-1],)}
    assert groups(single, "alignment.level=latent") == {"latent": ("latent",)}
