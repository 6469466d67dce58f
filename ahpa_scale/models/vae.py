# SPDX-License-Identifier: Apache-2.0
"""The frozen VAE of latent diffusion: posterior moments, encoder levels on a grid, decoding.

Shapes: B batch, C channels, H W height and width, gg the token grid.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from huggingface_hub import constants as hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from torch import Tensor, nn

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import (
    ARCHITECTURE_DEFAULTS,
    DEMO_VAE,
    DEMO_VAE_FOLDER,
    KNOWN_VAES,
    complete_config,
    downsample,
    encoder_levels,
    load_vae_config,
)
from ahpa_scale.models.vae_files import PATTERNS, check_weights, read_config
from ahpa_scale.printable import without_secrets
from ahpa_scale.unreachable import UnreachableError, is_unreachable

#: Repository, folder in it, and a branch, tag or commit.
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w./-]*))?(?:@(\w[\w./-]*))?")

#: Makes of a level's name and its map [B, C_level, H, W] what is kept of it.
Reduce = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Encoded:
    """The encoder's results for a batch of pictures; all float32, none with a graph.

    Attributes:
        mean_BCHW: posterior mean, unscaled.
        std_BCHW: posterior standard deviation, unscaled.
        priors: level name -> map [B, C_level, g, g], or what `reduce` made of the level.
    """

    mean_BCHW: Tensor
    std_BCHW: Tensor
    priors: dict[str, Tensor] = field(default_factory=dict)


class FrozenVAE(nn.Module):
    """An AutoencoderKL that never trains, with taps at the levels of its encoder.

    Attributes:
        config: architecture and scaling keys of the diffusers config.
        identity: hash of architecture and weights, 16 hex characters; the scaling does not count.
        levels: the encoder's levels, fine to coarse.
        latent_channels: channels of a latent.
        downsample: picture pixels per latent pixel, along one side.
    """

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.config = complete_config(model.config)
        self.identity = _identity(model, self.config)
        self.levels = encoder_levels(self.config)
        self.latent_channels = int(self.config["latent_channels"])
        self.downsample = downsample(self.config)
        for level in self.levels:
            model.get_submodule(level.name)  # fails here, not in the middle of a data set
        # Convolutions on a CPU run about ten times faster in this layout.
        self.model = model.to(memory_format=torch.channels_last)
        self.requires_grad_(False).train(False)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FrozenVAE:
        """Load a VAE in float32 from safetensors; pickled weights are refused.

        Args:
            path: a local diffusers folder, ``demo`` (the embedded VAE) or a hub id
                (``organisation/name`` or ``organisation/name/subfolder``, and ``@revision`` after
                it for one branch, tag or commit).

        Raises:
            UserError: there is no readable AutoencoderKL.
            UnreachableError: the hub does not answer.
        """
        load_vae_config(path)  # refuses a folder that holds something else
        folder = DEMO_VAE_FOLDER if str(path) == DEMO_VAE else storage.local_path(path)
        if folder.is_dir():
            return cls(_load(folder))
        match = _HUB_ID.fullmatch(str(path))
        if match is None:
            raise UserError(f"no VAE at {str(path)!r}: {_nearest(str(path), _known_names())}")
        return cls(_load(_from_hub(*match.groups())))

    def train(self, mode: bool = True) -> FrozenVAE:
        """Stay in evaluation mode, whatever the parent module does."""
        return super().train(False)

    @torch.no_grad()
    def encode(
        self,
        image_BCHW: Tensor,
        levels: Sequence[str] = (),
        grid: int | None = None,
        reduce: Reduce | None = None,
    ) -> Encoded:
        """Posterior moments of pictures and the wanted encoder levels, without a graph.

        Args:
            image_BCHW: uint8, or float in [-1, 1]; sides divisible by ``downsample``.
            levels: names out of ``levels``.
            grid: tokens per side the levels are averaged to; None keeps the latent's resolution.
            reduce: called with each wanted level's name and float32 map, in place of averaging.

        Returns:
            Float32 moments (unscaled) and one map per level, [B, C_level, grid, grid], or what
            `reduce` made of it.

        Raises:
            UserError: unknown level, or a size or grid that does not fit.
        """
        names = [level.name for level in self.levels]
        for name in levels:
            if name not in names:
                raise UserError(f"unknown VAE level {name!r}: {_nearest(name, names)}")
        size = self._pooled_size(image_BCHW, grid)
        with _reduced_levels(self.model, levels, reduce or _pooling(size)) as priors:
            posterior = self.model.encode(self._to_input(image_BCHW)).latent_dist
        moments_BCHW = posterior.parameters.float()
        mean_BCHW, logvar_BCHW = moments_BCHW.chunk(2, dim=1)
        std_BCHW = torch.exp(0.5 * logvar_BCHW.clamp(-30.0, 20.0))
        return Encoded(mean_BCHW.contiguous(), std_BCHW.contiguous(), priors)

    @torch.no_grad()
    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Unscaled latents [B, C, H, W] -> uint8 pictures [B, 3, H, W], downsample times larger."""
        parameter = next(self.model.parameters())
        z_BCHW = z_BCHW.to(parameter.dtype).contiguous(memory_format=torch.channels_last)
        image_BCHW = self.model.decode(z_BCHW).sample.float()
        image_BCHW = image_BCHW.clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
        return image_BCHW.to(torch.uint8).contiguous()

    def _to_input(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = image_BCHW.float().div(127.5).sub(1.0)
        image_BCHW = image_BCHW.to(next(self.model.parameters()).dtype)
        return image_BCHW.contiguous(memory_format=torch.channels_last)

    def _pooled_size(self, image_BCHW: Tensor, grid: int | None) -> tuple[int, int]:
        height, width = image_BCHW.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise UserError(
                f"pictures of {height}x{width} do not divide by the VAE's downsampling of "
                f"{self.downsample}"
            )
        latent = (height // self.downsample, width // self.downsample)
        if grid is None:
            return latent
        if not 1 <= grid <= min(latent):
            raise UserError(f"grid {grid} does not fit a latent of {latent[0]}x{latent[1]}")
        return grid, grid


def _pooling(size: tuple[int, int]) -> Reduce:
    def pool(level: str, map_BCHW: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(map_BCHW, size).contiguous()

    return pool


@contextmanager
def _reduced_levels(
    model: AutoencoderKL, levels: Sequence[str], reduce: Reduce
) -> Iterator[dict[str, Tensor]]:
    """Collect levels during one forward pass; the hook reduces them, so no full map is kept."""
    reduced: dict[str, Tensor] = {}

    def tap(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, map_BCHW: Tensor) -> None:
            with torch.autocast(map_BCHW.device.type, enabled=False):
                reduced[name] = reduce(name, map_BCHW.float())

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [tap(name) for name in levels]
    try:
        yield reduced
    finally:
        for handle in handles:
            handle.remove()


def _from_hub(repository: str, subfolder: str | None, revision: str | None) -> Path:
    """The local copy of a repository's folder, with only the files that are read."""
    inside = "" if subfolder is None else f"{subfolder}/"
    patterns = [inside + pattern for pattern in PATTERNS]
    place = f"{repository}/{subfolder}" if subfolder else repository
    place += f"@{revision}" if revision else ""
    try:
        copy = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            # Version 1 asks the hub for the files of a commit, offline as well.
            local_files_only=hub.HF_HUB_OFFLINE,
        )
    except RepositoryNotFoundError as error:
        raise UserError(
            f"cannot load a VAE from {place!r}: it is not a local folder, and the hub does not "
            "know it or keeps it private"
        ) from error
    except (OSError, HFValidationError) as error:
        # HF_HUB_OFFLINE fails like a broken connection, but another try would not help.
        if is_unreachable(error) and not hub.HF_HUB_OFFLINE:
            # The library's own message says that the file is not there.
            raise UnreachableError(
                f"cannot load the VAE {place!r}: the hub does not answer; try again, or name a "
                "local copy"
            ) from error
        raise _no_vae(place, error) from error
    folder = Path(copy, inside)
    read_config(folder)
    return folder


def _load(folder: Path) -> AutoencoderKL:
    check_weights(folder)
    try:
        model, told = AutoencoderKL.from_pretrained(
            str(folder),
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # True needs accelerate, which is not a dependency
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        # Unreadable weights, weights of another architecture, or an unknown architecture.
        raise _no_vae(str(folder), error) from error
    if told["missing_keys"]:
        # diffusers would draw them at random.
        raise UserError(
            f"cannot load a VAE from {str(folder)!r}: its weights lack {told['missing_keys'][0]!r}"
        )
    return model


def _no_vae(place: str, error: Exception) -> UserError:
    reason = without_secrets(" ".join(str(error).split()))[:300]
    return UserError(f"cannot load a VAE from {place!r}: {reason}")


def _identity(model: AutoencoderKL, config: dict[str, object]) -> str:
    """Sha256 over architecture and float32 weights: the file's own dtype does not matter."""
    architecture = {key: config[key] for key in ARCHITECTURE_DEFAULTS}
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _known_names() -> list[str]:
    return [DEMO_VAE, *KNOWN_VAES]


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
