# SPDX-License-Identifier: Apache-2.0
"""Pictures in arrays become the same data set as pictures in files, and refuse what doesn't fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_sets import GRID, SIZE, batches, everything

from ahpa_scale.data.array_source import ArraySource
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.sources import FolderSource

COUNT = 12
CLASSES = ("ant", "bee", "cow")


def arrays(count: int = COUNT, side: int = SIZE):
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    external_NCgg = rng.normal(size=(count, 5, GRID, GRID)).astype(np.float16)
    return images_NHWC, np.arange(count) % 3, external_NCgg


def test_labels_features_and_order_survive(vae_path, tmp_path):
    images_NHWC, labels_N, external_NCgg = arrays()
    source = ArraySource(images_NHWC, labels_N, CLASSES, external_NCgg=external_NCgg)
    card = prepare(source, str(tmp_path / "set"), vae_path=vae_path, grid=GRID, progress=False)
    assert (card.num_samples, card.classes, card.external_channels) == (COUNT, CLASSES, 5)
    found = batches(str(tmp_path / "set"), batch_size=4)
    assert everything(found, "label").tolist() == labels_N.tolist()
    assert torch.equal(everything(found, "prior.external"), torch.from_numpy(external_NCgg))


def test_arrays_and_files_of_the_same_pictures_give_the_same_latents(
    pictures, vae_path, prepared, tmp_path
):
    folder = FolderSource(str(pictures), size=SIZE)
    read = [folder.read(position) for position in range(len(folder))]
    source = ArraySource(
        np.stack([one.image_HWC for one in read]),
        np.array([one.label for one in read]),
        folder.classes,
    )
    out = str(tmp_path / "set")
    prepare(source, out, vae_path=vae_path, batch_size=10, scaling="channel", progress=False)
    for key in ("moments", "label", "prior.encoder.mid_block"):
        assert torch.equal(everything(batches(out), key), everything(batches(prepared), key))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, y, e: (i.astype(np.float32), y, e), "uint8"),
        (lambda i, y, e: (i[:, :8], y, e), "square"),
        (lambda i, y, e: (i, y[:-1], e), "labels"),
        (lambda i, y, e: (i, y + 1, e), "from 0 to 2"),
        (lambda i, y, e: (i, y, e[:-1]), "features"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change, words):
    images_NHWC, labels_N, external_NCgg = change(*arrays())
    with pytest.raises(ValueError, match=words):
        ArraySource(images_NHWC, labels_N, CLASSES, external_NCgg=external_NCgg)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 2 * SIZE}, "16 pixels"),
        ({"limit": 3}, "limit is for stored pictures"),
        ({"features": "somewhere"}, "features is for stored pictures"),
        ({"grid": 2 * GRID}, "grid of 2"),
        ({"num_samples": 3}, "num_samples"),
    ],
)
def test_options_that_do_not_fit_arrays_are_refused(options, words, vae_path, tmp_path):
    images_NHWC, labels_N, external_NCgg = arrays()
    source = ArraySource(images_NHWC, labels_N, CLASSES, external_NCgg=external_NCgg)
    with pytest.raises(ValueError, match=words):
        prepare(source, str(tmp_path / "set"), vae_path=vae_path, **options)
    assert not (tmp_path / "set").exists()
