# SPDX-License-Identifier: Apache-2.0
"""Demo pictures: deterministic, labelled, and described exactly by their factors and maps."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale.data.demo import PRESETS, DemoSpec, class_names, render
from ahpa_scale.data.demo.mixture import DemoMixture, held_out
from ahpa_scale.data.demo.shapes import REACH, SHAPE_NAMES, SHAPES
from ahpa_scale.data.demo.spec import RULES
from ahpa_scale.data.demo.textures import HUES, TEXTURE_NAMES, TEXTURES

EASY = PRESETS["easy"]
HARD = PRESETS["hard"]


def digest(spec: DemoSpec, seed: int, index: int) -> str:
    """One hash over everything a picture consists of."""
    picture = render(spec, seed, index)
    parts = [picture.image, *(picture.maps[kind] for kind in sorted(picture.maps))]
    record = json.dumps(picture.factors, sort_keys=True).encode()
    return hashlib.sha256(b"".join(part.tobytes() for part in parts) + record).hexdigest()


def hue_distance(first: float, second: float) -> float:
    return abs((first - second + 0.5) % 1.0 - 0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_same_picture_in_any_order_and_process(name: str) -> None:
    tasks = [(PRESETS[name], 3, index) for index in range(6)]
    here = [digest(*task) for task in tasks]
    assert [digest(*task) for task in reversed(tasks)][::-1] == here
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(digest, tasks) == here
    assert len(set(here)) == len(here)


def test_seed_and_index_both_matter() -> None:
    assert digest(EASY, 0, 1) != digest(EASY, 1, 0) != digest(EASY, 0, 0)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(PRESETS)),
    size=st.sampled_from([16, 32, 47, 64]),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**40),
)
def test_maps_and_factors_agree(name: str, size: int, seed: int, index: int) -> None:
    spec = DemoSpec.preset(name, size=size)
    picture = render(spec, seed, index)
    assert picture.image.shape == (size, size, 3)
    assert picture.image.dtype == np.uint8
    assert picture.label == picture.factors["label"]
    assert picture.factors["class"] == class_names(spec)[picture.label]
    objects = picture.factors["objects"]
    assert spec.objects[0] <= len(objects) <= spec.objects[1]
    owner = picture.maps["object"]
    assert {kind: found.dtype.name for kind, found in picture.maps.items()} == {
        "object": "uint8",
        "shape": "uint8",
        "texture": "uint8",
    }
    assert set(np.unique(owner)) <= {0, *(item["id"] for item in objects)}
    for kind, names in (("shape", SHAPE_NAMES), ("texture", TEXTURE_NAMES)):
        for item in objects:
            mine = owner == item["id"]
            assert item["visible"] == mine.sum()
            assert (picture.maps[kind][mine] == 1 + names.index(item[kind])).all()
        assert (picture.maps[kind][owner == 0] == 0).all()


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_place_and_size_can_be_read_off_the_map(shape: str) -> None:
    spec = DemoSpec(size=64, num_shapes=len(SHAPE_NAMES), num_classes=len(SHAPE_NAMES), rotation=0)
    axis = np.linspace(-REACH, REACH, 441, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = SHAPES[shape](u, v)
    assert not inside[0].any()
    assert not inside[-1].any()
    assert not inside[:, 0].any()
    assert not inside[:, -1].any()
    area = inside.mean() * (2.0 * REACH) ** 2
    found = [render(spec, 5, index) for index in range(200)]
    found = [picture for picture in found if picture.factors["objects"][0]["shape"] == shape]
    assert found
    for picture in found[:6]:
        (item,) = picture.factors["objects"]
        radius = item["size"] * spec.size
        assert item["visible"] == pytest.approx(area * radius**2, rel=0.08)
        rows, columns = np.nonzero(picture.maps["object"])
        centre = (columns.mean() + 0.5, rows.mean() + 0.5)
        offset = (u[inside].mean() * radius, v[inside].mean() * radius)
        assert centre[0] - offset[0] == pytest.approx(item["x"] * spec.size, abs=0.5)
        assert centre[1] - offset[1] == pytest.approx(item["y"] * spec.size, abs=0.5)


def test_maps_fit_the_picture_pixel_by_pixel() -> None:
    # With flat colours on a flat background, inner pixels of a region must all look the same.
    spec = DemoSpec(num_textures=1, background=0, objects=(2, 3))
    for index in range(20):
        picture = render(spec, 0, index)
        owner = np.pad(picture.maps["object"], 1, mode="edge")
        size = spec.size
        windows = [owner[r : r + size, c : c + size] for r in range(3) for c in range(3)]
        inner = (np.stack(windows) == owner[1:-1, 1:-1]).all(axis=0)
        for number in range(len(picture.factors["objects"]) + 1):
            colours = picture.image[inner & (picture.maps["object"] == number)]
            if len(colours) >= 20:
                usual = (colours == np.median(colours, axis=0)).all(axis=1)
                # Tips thinner than a pixel may tint a neighbour's pixel without owning it.
                assert usual.mean() > 0.95


@pytest.mark.parametrize("name", PRESETS)
def test_every_class_is_drawn_with_its_shape_and_hue(name: str) -> None:
    spec = PRESETS[name]
    names = class_names(spec)
    assert len(set(names)) == spec.num_classes
    seen = set()
    for index in range(20 * spec.num_classes):
        picture = render(spec, 1, index)
        main = picture.factors["objects"][0]
        hue, shape = names[picture.label].split(" ", 1)
        assert main["shape"] == shape
        assert hue_distance(main["hue"], HUES[hue]) <= 0.021
        seen.add(picture.label)
    assert seen == set(range(spec.num_classes))


def test_coarse_labels_say_where_and_nothing_else() -> None:
    spec = DemoSpec(label_informative=False, num_classes=6)
    looks: dict[int, set[str]] = {label: set() for label in range(6)}
    for index in range(300):
        picture = render(spec, 0, index)
        main = picture.factors["objects"][0]
        row, column = int(main["y"] * 2), int(main["x"] * 3)
        assert picture.label == 3 * row + column
        assert picture.factors["class"] == f"row {row + 1}, column {column + 1}"
        looks[picture.label].add(main["shape"])
    assert all(len(shapes) >= 6 for shapes in looks.values())


def test_relations_bind_the_second_object() -> None:
    checked = set()
    for index in range(200):
        picture = render(HARD, 2, index)
        first, second = picture.factors["objects"][:2]
        rule = picture.factors["relation"]
        assert rule == RULES[picture.label % len(RULES)]
        held = {
            "mirrored across": (second["x"], second["y"])
            == pytest.approx((1 - first["x"], first["y"])),
            "mirrored down": (second["x"], second["y"])
            == pytest.approx((first["x"], 1 - first["y"])),
            "same hue": second["hue"] == first["hue"],
            "opposite hue": hue_distance(second["hue"], first["hue"])
            == pytest.approx(0.5, abs=1e-5),
            "same size": second["size"] == first["size"],
            "half size": second["size"] == pytest.approx(first["size"] / 2, abs=1e-5),
        }
        assert held[rule], (index, rule)
        checked.add(rule)
    assert checked == set(RULES)
    assert render(replace(HARD, relations="none"), 2, 0).factors["relation"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"texture_contrast": 0.9},
        {"background": 0},
        {"background": 2},
        {"background": 3},
        {"rotation": 90.0},
        {"objects": (3, 3)},
        {"num_textures": 10},
        {"num_shapes": 4},
        {"num_classes": 30},
        {"label_informative": False},
    ],
)
def test_each_knob_changes_pictures(change: dict[str, object]) -> None:
    spec = replace(EASY, num_textures=4)
    changed = replace(spec, **change)
    same = [(render(spec, 0, i).image == render(changed, 0, i).image).all() for i in range(12)]
    assert not all(same)


def test_texture_contrast_zero_leaves_flat_objects() -> None:
    spec = DemoSpec(texture_contrast=0.0, num_textures=10, background=0)
    for index in range(10):
        picture = render(spec, 0, index)
        inner = picture.image[picture.maps["object"] == 1].astype(int)
        # Only the smoothed border differs from the single colour inside.
        assert (inner == np.median(inner, axis=0)).all(axis=1).mean() > 0.4


def test_textures_stay_in_range_and_differ() -> None:
    axis = np.linspace(-1, 1, 65, dtype=np.float32)
    fields = [texture(axis[None, :], axis[:, None], 8.0) for texture in TEXTURES.values()]
    assert all(field.shape == (65, 65) and np.abs(field).max() <= 1.0 for field in fields)
    for index, field in enumerate(fields):
        assert all(np.abs(field - other).mean() > 0.1 for other in fields[:index])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 15}, "size must be within 16 to 4096, not 15"),
        ({"size": 32.0}, "size must be a whole number"),
        ({"num_classes": 0}, "num_classes must be within 1 to 64"),
        ({"num_classes": 17, "label_informative": False}, "num_classes must be within 1 to 16"),
        ({"num_shapes": 15}, "num_shapes must be within 1 to 14"),
        ({"num_textures": 0}, "num_textures must be within 1 to 10"),
        ({"texture_contrast": 1.5}, "texture_contrast must be within"),
        ({"texture_contrast": "high"}, "texture_contrast must be a number"),
        ({"background": 4}, "background must be within 0 to 3"),
        ({"rotation": -1.0}, "rotation must be within"),
        ({"objects": (2, 1)}, "objects must be"),
        ({"objects": (0, 1)}, "objects must be"),
        ({"objects": (1, 9)}, "objects must be"),
        ({"relations": "maybe"}, "relations must be 'none' or 'label'"),
        ({"relations": "label"}, "needs at least 2 objects"),
    ],
)
def test_bad_knobs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EASY, **change)


def test_bad_preset_and_index_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'medium'"):
        DemoSpec.preset("medum")
    with pytest.raises(ValueError, match="seed and index must be 0 or more"):
        render(EASY, 0, -1)
    assert DemoSpec.preset("hard", size=64) == replace(HARD, size=64)


def test_mixture_repeats_itself_and_keeps_off_unseen_pictures() -> None:
    first, second = DemoMixture(0, 16), DemoMixture(0, 16)
    batches = [first.batch(step, 8) for step in range(4)]
    assert [batch.shape for batch in batches] == [(8, 3, 32, 32)] * 3 + [(2, 3, 64, 64)]
    assert all((batch == second.batch(step, 8)).all() for step, batch in enumerate(batches))
    assert not (batches[0] == batches[1]).all()
    sets = held_out(1, 32, 4)
    assert set(sets) == {*PRESETS, "grey objects"}
    grey = sets["grey objects"]
    assert (grey == grey[:, :1]).all()
    assert (grey == 0).mean() > 0.2
