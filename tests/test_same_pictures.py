# SPDX-License-Identifier: Apache-2.0
"""The same pictures from every kind of source give the same latents and labels, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import SIZE, batches, everything
from stored_pictures import CLASSES, save_all

from ahpa_scale.data.parts import prepare_part
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import Part
from ahpa_scale.data.sources import SourceOptions, StoredSource, open_source
from ahpa_scale.errors import UserError

#: More by hand: AHPA_SAME_PICTURES=2000 pytest tests/test_same_pictures.py
COUNT = int(os.environ.get("AHPA_SAME_PICTURES", "60"))
KINDS = ("tar", "saved", "parquet", "hf", "mds", "npz", "metadata", "deep")
OPTIONS = {"deep": {"class_depth": 2}}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        yield save_all(tmp_path_factory.mktemp("stored"), COUNT, SIZE)


@pytest.fixture(scope="module")
def wanted(places, vae_path, tmp_path_factory) -> dict[str, torch.Tensor]:
    return prepared(places, "folder", vae_path, tmp_path_factory.mktemp("wanted"))


def prepared(
    places: dict[str, str], kind: str, vae_path: str, room: Path
) -> dict[str, torch.Tensor]:
    out = str(room / "set")
    options = {"size": SIZE, "vae_path": vae_path, "progress": False, "batch_size": 16}
    card = prepare(places[kind], out, **options, **OPTIONS.get(kind, {}))
    assert (card.num_samples, card.classes) == (COUNT, CLASSES)
    found = batches(out)
    return {
        name: everything(found, name) for name in ("moments", "label", "prior.encoder.mid_block")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_latents_labels_and_order_are_the_same(places, wanted, vae_path, tmp_path, kind):
    found = prepared(places, kind, vae_path, tmp_path)
    assert found["label"].unique().tolist() == [0, 1, 2]
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name


def opened(places: dict[str, str], kind: str, **options: object) -> StoredSource:
    merged = {"size": SIZE, **OPTIONS.get(kind, {}), **options}
    return open_source(places[kind], SourceOptions(**merged))


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_every_source_is_shuffled_limited_and_read_from_anywhere(places, kind):
    source, again, other = (opened(places, kind, shuffle_seed=seed) for seed in (0, 0, 1))
    assert source.names == again.names != other.names
    assert sorted(source.names) == sorted(other.names)
    assert len(set(source.names)) == COUNT
    assert opened(places, kind, limit=7).names == source.names[:7]
    for position in (COUNT - 1, 0, COUNT // 2):
        first, second = source.read(position), again.read(position)
        np.testing.assert_array_equal(first.image_HWC, second.image_HWC)
        assert first.name == source.name(position)


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_what_machines_see_is_compared_by_class(places, kind):
    digests = opened(places, kind).digests(2)
    assert list(digests) == list(CLASSES)
    assert digests == opened(places, kind, shuffle_seed=5, limit=3).digests(1)
    for label, text in enumerate(digests.values()):
        assert text.startswith(f"{len(range(label, COUNT, 3))} pictures, digest ")


def test_parts_of_a_tar_are_the_whole_and_other_tars_do_not_join(
    places, wanted, vae_path, tmp_path
):
    options = {"size": SIZE, "vae_path": vae_path, "progress": False, "batch_size": 16}
    out = str(tmp_path / "set")
    assert prepare_part(places["tar"], out, Part(1, 2), **options) is None
    fewer = places["tar"].replace("..002", "..001")
    with pytest.raises(UserError, match=r"belongs to|made of other files"):
        prepare_part(fewer, out, Part(0, 2), **options)
    prepare_part(places["tar"], out, Part(0, 2), **options)
    # Other batches, other roundings.
    found = everything(batches(out), "moments").float()
    assert torch.allclose(found, wanted["moments"].float(), rtol=0.01, atol=0.01)
    assert torch.equal(everything(batches(out), "label"), wanted["label"])
