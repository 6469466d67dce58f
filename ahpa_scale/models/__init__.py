# SPDX-License-Identifier: Apache-2.0
"""The models: transformer, interpolants, frozen VAE, generator. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahpa_scale.models.conventions import (
        OfficialDiTVelocity,
        OfficialSiTVelocity,
        as_velocity,
        official_sit_velocity,
    )
    from ahpa_scale.models.dit import DiT, build_dit
    from ahpa_scale.models.dit_config import DIT_SIZES, DiTGeometry, resolve_geometry
    from ahpa_scale.models.flow import (
        Path,
        get_path,
        interpolate,
        log_snr,
        sample_timesteps,
        velocity_loss,
    )
    from ahpa_scale.models.generator import DiffusionGenerator
    from ahpa_scale.models.vae import FrozenVAE

# Torch, Composer and diffusers take seconds to import; torch-free modules must not wait for them.
_HOMES = {
    "DIT_SIZES": "dit_config",
    "DiT": "dit",
    "DiTGeometry": "dit_config",
    "DiffusionGenerator": "generator",
    "FrozenVAE": "vae",
    "OfficialDiTVelocity": "conventions",
    "OfficialSiTVelocity": "conventions",
    "Path": "flow",
    "as_velocity": "conventions",
    "build_dit": "dit",
    "get_path": "flow",
    "interpolate": "flow",
    "log_snr": "flow",
    "official_sit_velocity": "conventions",
    "resolve_geometry": "dit_config",
    "sample_timesteps": "flow",
    "velocity_loss": "flow",
}

__all__ = [
    "DIT_SIZES",
    "DiT",
    "DiTGeometry",
    "DiffusionGenerator",
    "FrozenVAE",
    "OfficialDiTVelocity",
    "OfficialSiTVelocity",
    "Path",
    "as_velocity",
    "build_dit",
    "get_path",
    "interpolate",
    "log_snr",
    "official_sit_velocity",
    "resolve_geometry",
    "sample_timesteps",
    "velocity_loss",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
