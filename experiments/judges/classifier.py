# SPDX-License-Identifier: Apache-2.0
"""Small picture classifiers: the judge whose features give FD and KID, and an alignment teacher.

The two architectures differ on purpose, so that no model is judged by what it was aligned to.
Shapes: B N pictures, S the picture's side, K classes, F features, C channels, gg the token grid.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.storage import atomic_folder, read_bytes
from ahpa_scale.tensor_files import save_tensors

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class Residual(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        same = channels == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.norm1(x_BCHW))
        short_BCHW: Tensor = self.shortcut(x_BCHW)
        return short_BCHW + self.conv2(F.relu(self.norm2(self.conv1(y_BCHW))))


def _judge_body() -> nn.Sequential:
    """A residual network: 48, 96 and 192 channels at strides 2, 4 and 8."""
    return nn.Sequential(
        nn.Conv2d(3, 48, 5, 2, 2, bias=False),
        Residual(48, 96, 2),
        Residual(96, 192, 2),
        nn.BatchNorm2d(192),
        nn.ReLU(),
    )


def _plain(channels: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, (kernel - stride + 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.LeakyReLU(0.1))


def _teacher_body() -> nn.Sequential:
    """A plain network that ends at stride 4, so that its tokens keep their place."""
    return nn.Sequential(
        _plain(3, 48, 4, 2),
        _plain(48, 96, 4, 2),
        _plain(96, 96, 3, 1),
        _plain(96, 128, 3, 1),
        _plain(128, 128, 3, 1),
    )


_ARCHITECTURES: dict[str, tuple[Callable[[], nn.Sequential], int]] = {
    "judge": (_judge_body, 192),
    "teacher": (_teacher_body, 128),
}


class Classifier(nn.Module):
    """A small convolutional classifier of RGB pictures of about 28 to 64 pixels.

    Args:
        arch: ``judge`` (residual, ends at stride 8) or ``teacher`` (plain, ends at stride 4).
        num_classes: labels.

    Attributes:
        feature_dim: length of `features`, which are the last stage averaged over the picture.
        map_channels: channels of `maps`.

    Raises:
        UserError: an unknown architecture, or no class.
    """

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__()
        if arch not in _ARCHITECTURES:
            nearest = difflib.get_close_matches(arch, _ARCHITECTURES, n=1, cutoff=0.0)[0]
            raise UserError(
                f"unknown classifier {arch!r}: did you mean {nearest!r}?"
                f" Valid: {', '.join(_ARCHITECTURES)}"
            )
        if num_classes < 1:
            raise UserError(f"num_classes must be at least 1, not {num_classes}")
        build, width = _ARCHITECTURES[arch]
        self.arch, self.num_classes = arch, num_classes
        self.feature_dim = self.map_channels = width
        self.body = build()
        self.head = nn.Linear(width, num_classes)
        cast(Any, self).to(memory_format=torch.channels_last)

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """Class logits [B, K]; the same as `logits`."""
        logits_BK: Tensor = self.head(self.features(image_B3SS))
        return logits_BK.float()

    def logits(self, image_B3SS: Tensor) -> Tensor:
        """Class logits, float32 [B, K], of pictures that are uint8 or float in [-1, 1]."""
        return self.forward(image_B3SS)

    def features(self, image_B3SS: Tensor) -> Tensor:
        """The last layer's input, float32 [B, F]; pictures are uint8 or float in [-1, 1]."""
        return self._last_stage(image_B3SS).float().mean(dim=(2, 3))

    def maps(self, image_B3SS: Tensor, grid: int) -> Tensor:
        """The last stage averaged to a token grid.

        Args:
            image_B3SS: uint8, or float in [-1, 1].
            grid: tokens per side, at most the last stage's own side.

        Returns:
            float32 [B, C, grid, grid].

        Raises:
            UserError: the grid is finer than the last stage.
        """
        map_BCHW = self._last_stage(image_B3SS).float()
        if not 1 <= grid <= min(map_BCHW.shape[-2:]):
            raise UserError(
                f"grid {grid} does not fit: the {self.arch}'s last stage has"
                f" {map_BCHW.shape[-2]}x{map_BCHW.shape[-1]} places"
            )
        return F.adaptive_avg_pool2d(map_BCHW, grid).contiguous()

    def _last_stage(self, image_B3SS: Tensor) -> Tensor:
        if image_B3SS.ndim != 4 or image_B3SS.shape[1] != 3:
            raise UserError(f"pictures must be [B, 3, S, S], got {list(image_B3SS.shape)}")
        if image_B3SS.dtype == torch.uint8:
            image_B3SS = image_B3SS.float().div(127.5).sub(1.0)
        map_BCHW: Tensor = self.body(image_B3SS.contiguous(memory_format=torch.channels_last))
        return map_BCHW

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and configuration (JSON) into a folder, whole or not at all.

        Raises:
            FileExistsError: the folder is not empty.
        """
        with atomic_folder(folder) as room:
            self.write(room)

    def write(self, room: Path) -> None:
        """Write the files of `save` into a folder that the caller puts in place atomically."""
        told = _Told(self.arch, self.num_classes)
        (room / _CONFIG).write_text(
            json.dumps(asdict(told), sort_keys=True) + "\n", encoding="utf-8"
        )
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_tensors(state, room / _WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """Read what `save` wrote; the model is in evaluation mode and needs no gradient.

        Raises:
            UserError: no classifier is there, or its files are damaged.
        """
        folder = Path(folder)
        try:
            content = read_bytes(folder / _CONFIG, typed_json.LIMIT)
            told = typed_json.parse_as(_Told, content, _CONFIG)
            model = cls(told.arch, told.num_classes)
            weights = load_file(str(folder / _WEIGHTS))
        except (OSError, SafetensorError, UserError) as error:
            raise _unreadable(folder, error) from error
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:  # of another architecture
            raise _unreadable(folder, error) from error
        model.requires_grad_(False)
        return model.train(False)


@dataclass(frozen=True)
class _Told:
    """The content of the JSON file."""

    arch: str
    num_classes: Annotated[int, Field(ge=1, le=10**6)]

    __pydantic_config__ = typed_json.STRICT


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"no classifier can be read from {folder}: {reason}")


@torch.no_grad()
def apply_in_batches(
    function: Callable[[Tensor], Tensor], images_N3SS: Tensor, batch_size: int = 256
) -> Tensor:
    """Call a function on consecutive parts of many pictures and join the results.

    Args:
        function: for example ``judge.features``.
        images_N3SS: pictures; at least one.
        batch_size: pictures per call.

    Raises:
        UserError: no picture.
    """
    if not len(images_N3SS):
        raise UserError("there are no pictures to judge")
    return torch.cat([function(part) for part in images_N3SS.split(batch_size)])


def to_pictures(images_NSS3: NDArray[np.uint8]) -> Tensor:
    """uint8 arrays [N, S, S, 3], as data sets store them, to uint8 tensors [N, 3, S, S].

    Raises:
        UserError: another shape or dtype.
    """
    if images_NSS3.dtype != np.uint8 or images_NSS3.ndim != 4 or images_NSS3.shape[3] != 3:
        raise UserError(
            "pictures must be a uint8 array [N, S, S, 3],"
            f" got {images_NSS3.dtype} {list(images_NSS3.shape)}"
        )
    return torch.from_numpy(np.ascontiguousarray(images_NSS3.transpose(0, 3, 1, 2)))
