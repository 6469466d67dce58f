# SPDX-License-Identifier: Apache-2.0
"""Frechet and kernel Inception distance of generated pictures, with the library torch-fidelity.

The library has the weights, resizing and formulas of the original TensorFlow code, which published
numbers were computed with. For small pictures the repository has its own classifiers in
`experiments/judges`.

Shapes: N generated and M real pictures, B batch, S the picture's side, F Inception's features.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.data.pictures.decode import UnreadablePictureError, read_square
from ahpa_scale.data.pictures.listing import KINDS, Listing
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.errors import UserError
from ahpa_scale.progress import progress_bar
from ahpa_scale.unreachable import UnreachableError, is_unreachable

FEATURES = 2048
#: SHA-256 of the weights that the library fetches. They are a pickle: no other bytes are opened.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_EXTRACTOR, _LAYER = "inception-v3-compat", str(FEATURES)
#: Most bytes of a file with mu and sigma, both in float64, and room for other entries.
_STATISTICS_LIMIT = 256 << 20
#: The library's own subset size; smaller if there are fewer pictures.
_KID_SUBSET = 1000


@dataclass(frozen=True)
class RealPictures:
    """Features of real pictures, which generated pictures are compared with.

    Attributes:
        mean_F: mean of the features, float32, as in the library.
        covariance_FF: covariance of the features, float64.
        features_MF: float32; None if only the statistics are known, and then there is no KID.
    """

    mean_F: NDArray[np.float32]
    covariance_FF: NDArray[np.float64]
    features_MF: Tensor | None = None

    @classmethod
    def of(cls, features_MF: Tensor) -> RealPictures:
        """Compute the statistics of real pictures' features."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        statistics = fid_features_to_statistics(features_MF)
        return cls(statistics["mu"], statistics["sigma"], features_MF)

    def distances(self, features_NF: Tensor) -> dict[str, float | None]:
        """Distances of generated pictures from the real ones.

        Args:
            features_NF: float32, on the CPU.

        Returns:
            ``fid`` (Heusel et al. 2017, arXiv 1706.08500) and ``kid`` (Binkowski et al. 2018, arXiv
            1801.01401; the mean over the library's 100 subsets; None without real features).
        """
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric

        real = {"mu": self.mean_F, "sigma": self.covariance_FF}
        made = fid_features_to_statistics(features_NF)
        fid = fid_statistics_to_metric(made, real, verbose=False)["frechet_inception_distance"]
        kid = None
        if self.features_MF is not None:
            subset = min(_KID_SUBSET, len(features_NF), len(self.features_MF))
            kid = kid_features_to_metric(
                features_NF, self.features_MF, kid_subset_size=subset, verbose=False
            )["kernel_inception_distance_mean"]
        return {"fid": fid, "kid": kid}


class Inception:
    """The library's Inception network.

    Args:
        weights: the library's own weight file, or safetensors of the weights; None fetches the
            library's file once, into torch's cache.
        device: where it runs.

    Raises:
        UserError: the file holds no such weights.
        OSError: they can't be fetched.
    """

    def __init__(self, weights: str | None, device: torch.device) -> None:
        from torch_fidelity.utils import create_feature_extractor

        path = _fetched() if weights is None else storage.local_path(weights)
        state = _read_weights(path)
        try:
            with tempfile.TemporaryDirectory() as room:
                # The library unpickles its file, so it gets one that we wrote from plain tensors.
                torch.save(state, f"{room}/weights.pth")
                self._network = create_feature_extractor(
                    _EXTRACTOR,
                    [_LAYER],
                    cuda=False,
                    feature_extractor_weights_path=f"{room}/weights.pth",
                    verbose=False,
                ).to(device)
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} holds no weights of Inception: {reason}") from None
        self._device = device

    @torch.no_grad()
    def features(self, batches: Iterable[Tensor]) -> Tensor:
        """Features of batches of pictures, uint8 [B, 3, S, S], as float32 [N, F] on the CPU."""
        return torch.cat([self._network(each.to(self._device))[0].cpu() for each in batches])


def read_statistics(url: str) -> RealPictures:
    """Statistics as ADM and pytorch-fid publish them: ``.npz`` with ``mu`` and ``sigma``.

    Args:
        url: local path or URL.

    Raises:
        UserError: it is no such file.
        OSError: nothing is there, or the store can't be reached.
    """
    content = storage.read_bytes(url, _STATISTICS_LIMIT)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            mean_F, covariance_FF = stored["mu"], stored["sigma"]
    except (
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        EOFError,
        NotImplementedError,  # zipfile: unknown compression
        RuntimeError,  # zipfile: needs a password
        MemoryError,  # an array claims to be larger than its file
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{url} is no .npz with mu and sigma: {error}") from None
    if mean_F.shape != (FEATURES,) or covariance_FF.shape != (FEATURES, FEATURES):
        raise UserError(
            f"{url} has mu {list(mean_F.shape)} and sigma {list(covariance_FF.shape)}; Inception's "
            f"statistics have {FEATURES} features"
        )
    for name, array in (("mu", mean_F), ("sigma", covariance_FF)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"{url}: {name} holds something else than finite numbers")
    return RealPictures(mean_F.astype(np.float32), covariance_FF.astype(np.float64))


def weights_digest(weights: str | None) -> str:
    """Digest of Inception's weights; the file that the library fetches has it in its name."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights is None:
        return str(URL_INCEPTION_V3).rpartition("-")[2].partition(".")[0]
    return _digest(storage.local_path(weights).read_bytes())[:8]


def statistics_digest(url: str) -> str:
    """Digest of a file of statistics."""
    return _digest(storage.read_bytes(url))


class Folder:
    """Real pictures of a folder and its sub-folders, cropped as `prepare` crops them.

    Args:
        root: local folder.
        size: side of the cropped pictures.

    Raises:
        UserError: there are fewer than two pictures, or a folder cannot be listed.
    """

    def __init__(self, root: str, size: int) -> None:
        self._root, self._size = storage.local_path(root), size
        listing = Listing(self._root, classes=False)
        (self._names,) = listing.names
        if len(self._names) < 2:
            raise UserError(f"{root} holds {len(self._names)} pictures ({KINDS}); give a folder")
        told = [f"{size}", *(f"{name} {listing.size_of(name)}" for name in self._names)]
        #: Digest of the side, and of names and sizes of the files.
        self.digest = _digest(os.fsencode("\n".join(told)))
        #: Unreadable pictures of the latest pass.
        self.rejects = Rejects(len(self), REJECTS)

    def __len__(self) -> int:
        return len(self._names)

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in order, uint8 [B, 3, S, S]; unreadable ones are left out.

        Raises:
            UserError: more pictures are unreadable than allowed.
        """
        desc, self.rejects = "reference pictures", Rejects(len(self), REJECTS)
        with progress_bar(total=len(self), unit="picture", desc=desc, shown=shown) as bar:
            for first in range(0, len(self), batch_size):
                names = self._names[first : first + batch_size]
                images = [*self._readable(names)]
                if images:
                    yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
                bar.update(len(names))

    def _readable(self, names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        for name in names:
            try:
                yield read_square(self._root, name, self._size)
            except UnreadablePictureError as error:
                self.rejects.add(error)


def _read_weights(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load(content))
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} holds no weights of Inception: {error}") from None
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise UserError(
            f"{path} holds no weights of Inception that are known by their hash: "
            "name the library's own file with --inception, or .safetensors"
        )
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _fetched() -> Path:
    """The library's weights in torch's cache."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[-1])
    if not path.is_file():
        os.makedirs(path.parent, exist_ok=True)
        digits = weights_digest(None)
        try:
            # This writes a temporary file, checks the digits of its hash, then renames it.
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), digits, progress=False)
        except (OSError, RuntimeError) as error:
            kind = UnreachableError if is_unreachable(error) else UserError
            raise kind(
                f"cannot fetch {URL_INCEPTION_V3} ({error}): name a copy of it with --inception"
            ) from None
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
