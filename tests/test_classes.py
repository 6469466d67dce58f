# SPDX-License-Identifier: Apache-2.0
"""Classes keep their numbers from one split to the next, or the second split is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_pictures import SIZE, labels, opened, plain, refused

from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.sources.classes import coded, labels_of
from ahpa_scale.errors import UserError

NAMES = st.lists(st.from_regex(r"[a-z][0-9a-z é/]{0,3}", fullmatch=True), min_size=1, max_size=20)


def save(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain())
    return root


@pytest.fixture(scope="module")
def card(vae_path, tmp_path_factory) -> str:
    room = tmp_path_factory.mktemp("first")
    root = save(room / "train", "ant/1.png", "bee/2.png", "cow/3.png")
    prepare(str(root), str(room / "set"), vae_path=vae_path, size=SIZE, progress=False)
    return str(room / "set")


def test_a_second_split_has_the_firsts_numbers(card, vae_path, tmp_path):
    root = save(tmp_path / "val", "bee/4.png", "cow/5.png")
    assert opened(root).read(0).label != opened(root, classes_from=card).read(0).label
    options = {"vae_path": vae_path, "size": SIZE, "progress": False}
    for place in (card, f"{card}/dataset.json"):
        out = tmp_path / f"set-{len(place)}"
        made = prepare(str(root), str(out), classes_from=place, **options)
        assert made.classes == ("ant", "bee", "cow")
    source = opened(root, classes_from=card)
    assert labels(source) == {"bee/4.png": "bee", "cow/5.png": "cow"}


def test_a_prepared_set_of_pictures_is_a_source_with_its_classes(card, vae_path, tmp_path):
    root = Path(card).parent / "train"
    options = {"vae_path": vae_path, "size": SIZE, "progress": False}
    prepare(str(root), str(tmp_path / "set"), kind="images", **options)
    again = opened(tmp_path / "set")
    assert again.classes == ("ant", "bee", "cow")
    assert sorted(labels(again).values()) == ["ant", "bee", "cow"]
    assert "has no column that can be the image" in refused(card)


def test_a_class_that_the_first_lacks_is_an_error(card, tmp_path):
    line = refused(save(tmp_path / "val", "ant/1.png", "cows/5.png"), classes_from=card)
    assert line.endswith("the class cows, which is none of the 3 known classes: did you mean cow?")
    assert "no data set at" in refused(tmp_path / "val", classes_from=str(tmp_path / "none"))


def test_numbers_are_classes_by_their_place_or_by_their_name():
    labels_N = np.array([2, 0])
    by_place = labels_of(None, labels_N, ("ant", "bee", "cow"), "x")
    assert by_place[0] == ("ant", "bee", "cow")
    np.testing.assert_array_equal(by_place[1], labels_N)
    # A folder's classes are sorted as text, so 10 comes before 2.
    _, by_name_N = labels_of(None, labels_N, ("0", "1", "10", "2"), "x")
    np.testing.assert_array_equal(by_name_N, [3, 0])
    with pytest.raises(UserError, match="label 2, and there are 2 known classes"):
        labels_of(None, labels_N, ("ant", "bee"), "x")


@pytest.mark.parametrize("name", ["", " ", "\udcff", "x" * 1001])
def test_what_a_card_cannot_hold_is_no_class(name):
    with pytest.raises(UserError, match=r"x has a class .*: a name is UTF-8 text"):
        labels_of(("ant", name), np.array([0, 1]), None, "x")


@given(names=NAMES)
@settings(max_examples=50)
def test_names_are_coded_and_found_again(names):
    classes, labels_N = coded(names)
    assert classes == tuple(sorted(set(names)))
    assert [classes[label] for label in labels_N] == names
    backwards = tuple(reversed(classes))
    _, moved_N = labels_of(classes, labels_N, backwards, "x")
    assert [backwards[label] for label in moved_N] == names


@given(numbers=st.lists(st.integers(0, 999), min_size=1))
def test_numbers_stay_numbers(numbers):
    for told in (numbers, [str(number) for number in numbers]):
        classes, labels_N = coded(told)
        assert classes is None
        assert labels_N.tolist() == numbers
        every, _ = labels_of(classes, labels_N, None, "x")
        assert every == tuple(str(label) for label in range(max(numbers) + 1))


def test_one_class_is_asked_about_before_anything_is_made(vae_path, tmp_path):
    root = save(tmp_path / "root", "train/ant/1.png", "train/bee/2.png")
    options = {"vae_path": vae_path, "size": SIZE, "progress": False}
    with pytest.raises(UserError, match=r"one class only, train: .* classes, --class-depth 2"):
        prepare(str(root), str(tmp_path / "set"), **options)
    assert not (tmp_path / "set").exists()
    made = {depth: prepare(str(root), str(tmp_path / f"set-{depth}"), class_depth=depth, **options)
            for depth in (0, 1, 2)}  # fmt: skip
    assert [made[depth].classes for depth in (0, 1, 2)] == [("root",), ("train",), ("ant", "bee")]


def test_folders_of_any_depth_can_be_the_classes(tmp_path):
    root = save(tmp_path, "a/ant/1.png", "b/ant/2.png", "b/bee/deep/3.png", "a/beside.png")
    assert opened(root).classes == ("a", "b")
    source = opened(root, class_depth=2)
    assert labels(source) == {"a/ant/1.png": "ant", "b/ant/2.png": "ant", "b/bee/deep/3.png": "bee"}
    assert source.collection.left_out == "1 .png beside the class folders"
    flat = opened(root, class_depth=0)
    assert len(flat) == 4
    assert flat.classes == (tmp_path.name,)
    assert "has no sub-folders" in refused(root / "b" / "bee" / "deep")
