# SPDX-License-Identifier: Apache-2.0
"""What an AutoencoderKL's config alone tells: levels, downsampling, latent scaling.

Free of torch and diffusers, so that configuration checks and the command line can use it at once.
Shapes: B batch, C latent channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahpa_scale import paths, typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_files import read_config

if TYPE_CHECKING:
    import torch

DEMO_VAE = "demo"
DEMO_VAE_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "demo-vae"
MID_LEVEL = "encoder.mid_block"
GROUP_NAMES = ("local_geometry", "spatial_topology", "coarse_layout")

# Defaults of diffusers' AutoencoderKL for the keys that define the network, and so its identity.
ARCHITECTURE_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# Defaults of the keys that only say how the latents are to be scaled.
SCALING_DEFAULTS: dict[str, Any] = {
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}


def _known(**facts: Any) -> dict[str, Any]:
    """Complete the facts shared by the published four-resolution (f8) autoencoders."""
    shared = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    return ARCHITECTURE_DEFAULTS | SCALING_DEFAULTS | shared | facts


_SIXTEEN_CHANNELS = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_FLUX = _SIXTEEN_CHANNELS | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
_SD3 = _SIXTEEN_CHANNELS | {"scaling_factor": 1.5305, "shift_factor": 0.0609}

#: Hub ids ('organisation/name' or 'organisation/name/subfolder') whose config needs no download.
KNOWN_VAES: dict[str, dict[str, Any]] = {
    "stabilityai/sd-vae-ft-mse": _known(),
    "stabilityai/sd-vae-ft-ema": _known(),
    "stabilityai/sdxl-vae": _known(scaling_factor=0.13025),
    "madebyollin/sdxl-vae-fp16-fix": _known(scaling_factor=0.13025),
    "stabilityai/stable-diffusion-3-medium-diffusers/vae": _known(**_SD3),
    "black-forest-labs/FLUX.1-dev/vae": _known(**_FLUX),
    "black-forest-labs/FLUX.1-schnell/vae": _known(**_FLUX),
}


@dataclass(frozen=True)
class Level:
    """One tapped map of the encoder.

    Attributes:
        name: diffusers module path, e.g. ``encoder.down_blocks.0.resnets.1``.
        channels: channels of the map.
        downsample: picture pixels per map pixel, along one side.
    """

    name: str
    channels: int
    downsample: int


@dataclass(frozen=True)
class LatentScaling:
    """How raw VAE latents are brought to about unit variance: ``(z - shift) * scale`` per channel.

    Attributes:
        kind: ``config`` (the VAE's published factors) or ``channel`` (measured per channel).
        shift: one number per latent channel, in raw latent units.
        scale: one number per latent channel, per raw latent unit.
    """

    __pydantic_config__ = typed_json.STRICT

    kind: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in ("config", "channel"):
            raise UserError(f"scaling kind must be 'config' or 'channel', not {self.kind!r}")
        # JSON gives lists back; tuples keep the scaling hashable.
        object.__setattr__(self, "shift", tuple(float(value) for value in self.shift))
        object.__setattr__(self, "scale", tuple(float(value) for value in self.scale))
        if not self.shift or len(self.shift) != len(self.scale):
            raise UserError(
                f"scaling needs one shift and one scale per latent channel, "
                f"not {len(self.shift)} and {len(self.scale)}"
            )
        if not all(value > 0 for value in self.scale):
            raise UserError(f"every scale must be above 0, not {min(self.scale)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LatentScaling:
        """Read shift and scale of a diffusers config; per channel where it has latents_std."""
        channels = int(config["latent_channels"])
        factor = float(config.get("scaling_factor") or 1.0)
        shift = [float(config.get("shift_factor") or 0.0)] * channels
        scale = [factor] * channels
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shift = [float(value) for value in config["latents_mean"]]
            scale = [factor / float(value) for value in config["latents_std"]]
        return cls("config", tuple(shift), tuple(scale))

    def normalise(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, C, H, W] -> scaled latents of the same shape and dtype."""
        shift_C11, scale_C11 = self._columns(z_BCHW)
        return (z_BCHW - shift_C11) * scale_C11

    def denormalise(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, H, W] -> raw latents of the same shape and dtype."""
        shift_C11, scale_C11 = self._columns(z_BCHW)
        return z_BCHW / scale_C11 + shift_C11

    def _columns(self, z_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if z_BCHW.shape[-3] != len(self.shift):
            raise UserError(
                f"latents have {z_BCHW.shape[-3]} channels, their scaling has {len(self.shift)}"
            )
        columns_2C11 = _columns(self.shift, self.scale, z_BCHW.device, z_BCHW.dtype)
        return columns_2C11[0], columns_2C11[1]


@lru_cache(maxsize=16)
def _columns(
    shift: tuple[float, ...], scale: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Shift and scale, [2, C, 1, 1]; cached, because a copy in each step would stall the device."""
    import torch

    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor((shift, scale), device=device, dtype=dtype)[:, :, None, None]


def encoder_levels(config: Mapping[str, Any]) -> list[Level]:
    """Name the encoder levels of an AutoencoderKL, fine to coarse.

    A level is the output of the last residual block of a resolution; the mid block comes last.

    Args:
        config: diffusers config with ``block_out_channels`` and ``layers_per_block``.

    Returns:
        One Level per resolution and one for ``encoder.mid_block``.
    """
    widths = config["block_out_channels"]
    last = int(config.get("layers_per_block", ARCHITECTURE_DEFAULTS["layers_per_block"])) - 1
    levels = [
        Level(f"encoder.down_blocks.{i}.resnets.{last}", int(width), 2**i)
        for i, width in enumerate(widths)
    ]
    return [*levels, Level(MID_LEVEL, int(widths[-1]), downsample(config))]


def downsample(config: Mapping[str, Any]) -> int:
    """Picture pixels per latent pixel, along one side: 2 per resolution after the first."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def default_groups(levels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Split levels (fine to coarse) into local geometry, spatial topology and coarse layout.

    The split is contiguous and near-equal, earlier groups take the extra levels. Two levels make
    two groups. A single level keeps its own name, because it may be any of the three.

    Raises:
        UserError: no level was given.
    """
    if not levels:
        raise UserError("no levels to group: name at least one encoder level")
    if len(levels) == 1:
        return {levels[0]: (levels[0],)}
    count = min(len(GROUP_NAMES), len(levels))
    size, extra = divmod(len(levels), count)
    bounds = [i * size + min(i, extra) for i in range(count + 1)]
    return {GROUP_NAMES[i]: tuple(levels[bounds[i] : bounds[i + 1]]) for i in range(count)}


def load_vae_config(path: str | Path) -> dict[str, Any] | None:
    """The diffusers config of a VAE, without a download.

    Args:
        path: a local diffusers folder, ``demo`` (the embedded VAE) or a hub id.

    Returns:
        Architecture and scaling keys with defaults filled in; None for a hub id not in KNOWN_VAES.

    Raises:
        UserError: the folder has no readable config.json of an AutoencoderKL.
    """
    if str(path) in KNOWN_VAES:
        return dict(KNOWN_VAES[str(path)])
    folder = DEMO_VAE_FOLDER if str(path) == DEMO_VAE else Path(paths.local(path))
    if not folder.is_dir():
        return None
    stored = read_config(folder)
    return complete_config(stored)


def complete_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the architecture and scaling keys of a diffusers config and fill in the defaults."""
    defaults = ARCHITECTURE_DEFAULTS | SCALING_DEFAULTS
    config = {key: stored.get(key, default) for key, default in defaults.items()}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
