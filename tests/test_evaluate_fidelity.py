# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate --samples`: FID and KID are torch-fidelity's own.

The first test takes the roots of two 2048 x 2048 matrices: a minute and a half on a slow core.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import pickle
from importlib import util
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from evaluated_run import model_of, rows_of
from inception import save_random_inception
from PIL import Image
from safetensors.torch import load_file, save_file

from ahpa_scale.config.evaluation import Evaluation
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation import fidelity
from ahpa_scale.evaluation.fidelity import (
    FEATURES,
    Folder,
    Inception,
    RealPictures,
    read_statistics,
    weights_digest,
)
from ahpa_scale.evaluation.samples import ExactDecoder, draw_samples
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.sampling.settings import settings_from
from ahpa_scale.unreachable import UnreachableError

SAMPLES = 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_random_inception(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real pictures of the model's size, one of them in a folder further down."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    random = np.random.default_rng(0)
    for number in range(SAMPLES + 2):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        inside = folder / "deeper" if number == 0 else folder
        small.resize((32, 32)).save(inside / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


class Tensors(torch.utils.data.Dataset):
    """What torch-fidelity takes as pictures in memory."""

    def __init__(self, images_N3SS: torch.Tensor) -> None:
        self.images_N3SS = images_N3SS

    def __len__(self) -> int:
        return len(self.images_N3SS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images_N3SS[index]


def test_fid_and_kid_are_those_of_the_library(
    trained,
    evaluate,
    weights,
    pictures,
    tmp_path,
):
    newest = trained / "run" / "checkpoints" / "ba6"
    words = ["--samples", SAMPLES, "--reference", pictures, "--inception", weights]
    code, said, told = evaluate(newest, *words, "--batch-size", 3)
    assert (code, told) == (0, "")
    (row,) = rows_of(tmp_path / "out")
    assert f"{row['fid']:.3f}" in said
    assert f"{row['kid']:.5f}" in said
    generator = model_of(newest, trained / "held-out")
    images_N3SS = draw_samples(
        generator.dit,
        ExactDecoder(FrozenVAE.from_pretrained("demo")),
        generator.scaling,
        generator.path,
        torch.arange(SAMPLES) % generator.dit.num_classes,
        settings=settings_from(row["settings"]),
        batch_size=3,
    )
    from torch_fidelity import calculate_metrics

    torch.save(load_file(weights), tmp_path / "weights.pth")
    direct = calculate_metrics(
        input1=Tensors(images_N3SS),
        input2=str(pictures),
        samples_find_deep=True,
        fid=True,
        kid=True,
        kid_subset_size=SAMPLES,
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
        batch_size=3,
        cuda=False,
        cache=False,
        verbose=False,
    )
    assert row["fid"] == pytest.approx(direct["frechet_inception_distance"], rel=1e-3)
    assert row["kid"] == pytest.approx(direct["kernel_inception_distance_mean"], rel=1e-3)
    assert row["fid"] > 1, "the random network sees something"


def test_statistics_of_a_file_stand_in_for_pictures(tmp_path):
    features_MF = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(0))
    real = RealPictures.of(features_MF)
    np.savez(tmp_path / "s.npz", mu=real.mean_F.astype(np.float64), sigma=real.covariance_FF)
    read = read_statistics(str(tmp_path / "s.npz"))
    assert np.array_equal(read.mean_F, real.mean_F)
    assert np.array_equal(read.covariance_FF, real.covariance_FF)
    assert read.features_MF is None


def test_distances_without_features_have_no_kid():
    generator = torch.Generator().manual_seed(0)
    real_MF, made_NF = (torch.randn(50, 8, generator=generator) + shift for shift in (0.0, 1.0))
    whole = RealPictures.of(real_MF)
    told = RealPictures(whole.mean_F, whole.covariance_FF).distances(made_NF)
    assert told["kid"] is None
    assert told["fid"] == whole.distances(made_NF)["fid"]
    assert whole.distances(made_NF)["fid"] == pytest.approx(8, rel=0.3)


def npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no", "is no .npz with mu and sigma"),
        (npz(mu=np.zeros(FEATURES)), "is no .npz with mu and sigma"),
        (npz(mu=np.zeros(4), sigma=np.eye(4)), "Inception's statistics have 2048 features"),
        (npz(mu=np.array([{}], object), sigma=0), "is no .npz with mu and sigma"),
        (npz(mu=np.full(FEATURES, "x"), sigma=np.eye(FEATURES)), "mu holds something else than"),
        (npz(mu=np.zeros(FEATURES), sigma=np.eye(FEATURES) * np.nan), "sigma holds something else"),
        (pickle.dumps({"mu": 0, "sigma": 0}), "is no .npz with mu and sigma"),
    ],
)
def test_strange_statistics_are_refused_and_never_unpickled(content, message, tmp_path):
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_statistics(str(path))
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return builtins.exec, ("raise SystemExit('unpickled')",)


def test_strange_weights_are_refused_and_never_unpickled(tmp_path):
    path = tmp_path / "weights.pth"
    for content, saved in ((Evil(), "evil"), ({"x": torch.zeros(1)}, "another's")):
        torch.save(content, path)
        with pytest.raises(ValueError, match="holds no weights of Inception") as caught:
            Inception(str(path), torch.device("cpu"))
        assert "\n" not in str(caught.value), saved
    save_file({"x": torch.zeros(1)}, tmp_path / "another.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    for other in ("another.safetensors", "no.safetensors"):
        with pytest.raises(ValueError, match="holds no weights of Inception"):
            Inception(str(tmp_path / other), torch.device("cpu"))


def test_a_pickle_in_the_cache_is_opened_by_its_hash_only(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir()
    torch.save({"x": torch.zeros(1)}, path)
    opened = mock.Mock(side_effect=AssertionError("opened"))
    monkeypatch.setattr(torch, "load", opened)
    with pytest.raises(UserError, match="known by their hash: name the"):
        Inception(None, torch.device("cpu"))
    content = path.read_bytes()
    monkeypatch.setattr(fidelity, "WEIGHTS_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(AssertionError, match="opened"):
        Inception(None, torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("a disk"), UserError),
        (RuntimeError("invalid hash value"), UserError),
        (ConnectionRefusedError("no route to host"), UnreachableError),
    ],
)
def test_weights_that_can_not_be_fetched_say_what_to_do(error, told, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(url: str, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(told, match=r"weights-inception.* name a copy of it with --inception"):
        Inception(None, torch.device("cpu"))


def test_a_copy_of_the_librarys_weights_is_the_librarys_weights(tmp_path):
    assert weights_digest(None) == "6726825d"
    (tmp_path / "w").write_bytes(b"")
    assert weights_digest(str(tmp_path / "w")) == "e3b0c442", "the first digits of the SHA-256"


def test_real_pictures_are_cropped_as_prepare_crops_them(pictures, tmp_path):
    folder = Folder(str(pictures), 32)
    batches = list(folder.batches(4, shown=False))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 32, 32)] * 2 + [(2, 3, 32, 32)]
    first = np.asarray(Image.open(pictures / "1.png").convert("RGB"))
    assert np.array_equal(batches[0][0].permute(1, 2, 0).numpy(), first)
    assert {tuple(b.shape[2:]) for b in Folder(str(pictures), 16).batches(9, shown=False)} == {
        (16, 16)
    }
    assert Folder(str(pictures), 16).digest != folder.digest == Folder(str(pictures), 32).digest


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(
        "ahpa_scale.config.evaluation.find_spec",
        lambda name: None if name == "torch_fidelity" else found(name),
    )
    with pytest.raises(ValueError, match=r"not installed: pip install 'ahpa-scale\[eval\]'"):
        Evaluation("c", "d", samples=8, reference=".")
    Evaluation("c", "d")
