# SPDX-License-Identifier: Apache-2.0
"""`.npz` as ADM's evaluator reads and writes it: pictures, statistics, or both.

``arr_0`` holds pictures, uint8 [N, S, S, 3]. ``mu`` and ``sigma`` are mean and covariance of
Inception's pooled features, ``mu_s`` and ``sigma_s`` those of its spatial ones. Our own files add
``network``, the facts of the network as JSON. Nothing is unpickled.

Shapes: N pictures, B batch, S the picture's side, F features.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.settings import REJECTS
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.feature_sets import FeatureSet
from ahpa_scale.evaluation.frechet import Gaussian
from ahpa_scale.evaluation.networks.inception import FEATURES, SPATIAL_FEATURES
from ahpa_scale.evaluation.picture_sets.base import Statistics
from ahpa_scale.progress import progress_bar

PICTURES = "arr_0"
#: Most bytes of an array of statistics: a covariance of 5,600 features in float64.
_LIMIT = 256 << 20
_MOST_SIDE = 1 << 12
#: What zipfile and numpy raise on damaged files.
_BROKEN = (
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    EOFError,
    NotImplementedError,  # unknown compression
    RuntimeError,  # needs a password
    MemoryError,  # an array claims to be larger than its file
    zipfile.BadZipFile,
    zlib.error,
)


class NpzFile:
    """Pictures or statistics of an `.npz`.

    Args:
        place: local path or URL.
        room: local folder for a copy, if it is a URL.

    Raises:
        UserError: it holds neither, or holds something else under their names.
        OSError: nothing is there, or the store can't be reached.
    """

    def __init__(self, place: str, room: str) -> None:
        self.place = place
        self._path = storage.local_path(place)
        if storage.is_remote(place):
            self._path = Path(room, f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.npz")
            storage.get_file(place, self._path)
        self.digest = _digest(self._path)
        self.statistics: Statistics | None = None
        self.side: int | None = None
        self.num_pictures = 0
        with self._opened() as archive:
            names = set(archive.namelist())
            if f"{PICTURES}.npy" in names:
                with archive.open(f"{PICTURES}.npy") as entry:
                    self.num_pictures, self.side = self._shape(entry)
            if {"mu.npy", "sigma.npy"} <= names:
                self.statistics = _statistics(archive, place)
        if not self.num_pictures and self.statistics is None:
            raise UserError(f"{place} is no .npz with mu and sigma, nor with pictures, {PICTURES}")
        self.rejects = Rejects(self.num_pictures, REJECTS)

    def batches(self, batch_size: int, shown: bool) -> Iterator[Tensor]:
        """The pictures in order, uint8 [B, 3, S, S], read piece by piece.

        Raises:
            UserError: the file ends early.
        """
        total, side = self.num_pictures, self.side or 0
        bar = progress_bar(total=total, unit="picture", desc=self.place, shown=shown)
        with bar, self._opened() as archive, archive.open(f"{PICTURES}.npy") as entry:
            self._shape(entry)
            for first in range(0, total, batch_size):
                shape = (min(batch_size, total - first), side, side, 3)
                size = int(np.prod(shape))
                content = entry.read(size)
                if len(content) != size:
                    raise UserError(f"{self.place} ends after fewer than {total} pictures")
                images_BSS3 = np.frombuffer(content, np.uint8).reshape(shape)
                yield torch.from_numpy(images_BSS3.copy()).permute(0, 3, 1, 2).contiguous()
                bar.update(shape[0])

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError(
                f"{self.place} is no .npz with mu and sigma, nor with pictures: {error}"
            ) from None

    def _shape(self, entry: IO[bytes]) -> tuple[int, int]:
        """Number and side of the pictures; leaves the entry at the first one."""
        shape, fortran, dtype = _header(entry)
        fits = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
        if not fits or fortran or dtype != np.uint8 or not 1 <= shape[1] <= _MOST_SIDE:
            raise UserError(
                f"{self.place} holds {dtype} {list(shape)} as {PICTURES}; pictures are uint8 "
                "[N, S, S, 3]"
            )
        if shape[0] < 2:
            raise UserError(f"{self.place} holds {shape[0]} pictures; give two or more")
        return shape[0], shape[1]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def write_statistics(place: str, features: FeatureSet) -> None:
    """Writes Gaussians of features as ADM and pytorch-fid do, whole or not at all.

    Args:
        place: local path or URL.
        features: of one set of pictures.

    Raises:
        OSError: the disk or the store refused.
    """
    arrays: dict[str, Any] = {
        "mu": features.pooled.mean_F.numpy(),
        "sigma": features.pooled.covariance_FF.numpy(),
        "network": np.array(json.dumps(dict(features.facts))),
    }
    if features.spatial is not None:
        arrays["mu_s"] = features.spatial.mean_F.numpy()
        arrays["sigma_s"] = features.spatial.covariance_FF.numpy()
    content = io.BytesIO()
    np.savez(content, **arrays)
    storage.write_bytes(place, content.getvalue())


def _header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(entry)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(entry)
    return np.lib.format.read_array_header_2_0(entry)


def _statistics(archive: zipfile.ZipFile, place: str) -> Statistics:
    network = None
    if "network.npy" in archive.namelist():
        network = json.loads(str(_array(archive, "network")))
        if not isinstance(network, dict) or {"name", "weights", "preprocessing"} != set(network):
            raise UserError(f"{place}: network does not tell a network's name and weights")
    expected = FEATURES if network is None or network["name"] == "inception" else None
    pooled = _gaussian(archive, place, ("mu", "sigma"), expected)
    spatial = None
    if {"mu_s.npy", "sigma_s.npy"} <= set(archive.namelist()):
        spatial = _gaussian(archive, place, ("mu_s", "sigma_s"), SPATIAL_FEATURES)
    return Statistics(pooled, spatial, network)


def _gaussian(
    archive: zipfile.ZipFile, place: str, names: tuple[str, str], expected: int | None
) -> Gaussian:
    mean_F, covariance_FF = (_array(archive, name) for name in names)
    width = len(mean_F) if expected is None and mean_F.ndim == 1 else expected
    if mean_F.shape != (width,) or covariance_FF.shape != (width, width):
        raise UserError(
            f"{place} has {names[0]} {list(mean_F.shape)} and {names[1]} "
            f"{list(covariance_FF.shape)}; Inception's statistics have {expected} features"
        )
    for name, array in zip(names, (mean_F, covariance_FF), strict=True):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"{place}: {name} holds something else than finite numbers")
    mean, covariance = (torch.from_numpy(a.astype(np.float64)) for a in (mean_F, covariance_FF))
    return Gaussian(mean, covariance)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    if archive.getinfo(f"{name}.npy").file_size > _LIMIT:
        raise ValueError(f"{name} has more than {_LIMIT} bytes")
    with archive.open(f"{name}.npy") as entry:
        return np.asarray(np.lib.format.read_array(entry, allow_pickle=False))
