# SPDX-License-Identifier: Apache-2.0
"""Checks a VAE's files before diffusers reads them: a folder may come from anybody.

diffusers reads every weight file that an index names, wherever it is, and unpickles files that do
not end in `.safetensors`. Free of torch and diffusers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
#: What is downloaded from a hub: the files above and the pieces that an index may name.
PATTERNS = (CONFIG, WEIGHTS, INDEX, "diffusion_pytorch_model-*-of-*.safetensors")
_LIMIT = 4 << 20
_PIECE = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)

_Width = Annotated[int, Field(ge=1, le=1 << 13)]
_Side = Annotated[int, Field(ge=1, le=1 << 16)]
_Few = Annotated[int, Field(ge=1, le=64)]
_Blocks = Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=8)]
_Positive = Annotated[float, Field(gt=0)]


class VaeConfig(BaseModel):
    """The keys of a diffusers config that say what network to build and how to scale its latents.
    Missing keys have diffusers' defaults. Limits are needed: these numbers decide memory use.
    """

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    in_channels: _Few = 3
    out_channels: _Few = 3
    down_block_types: _Blocks = ["DownEncoderBlock2D"]
    up_block_types: _Blocks = ["UpDecoderBlock2D"]
    block_out_channels: Annotated[list[_Width], Field(min_length=1, max_length=8)] = [64]
    layers_per_block: _Few = 1
    act_fn: Annotated[str, Field(max_length=64)] = "silu"
    latent_channels: _Width = 4
    norm_num_groups: _Width = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: _Positive | None = None
    shift_factor: float | None = None
    latents_mean: Annotated[list[float], Field(max_length=1 << 13)] | None = None
    latents_std: Annotated[list[_Positive], Field(max_length=1 << 13)] | None = None
    sample_size: _Side | Annotated[list[_Side], Field(min_length=1, max_length=2)] = 32
    quantization_config: None = None
    use_default_values: Annotated[list[str], Field(alias="_use_default_values")] = []


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a VAE folder's config, with values that are valid for an AutoencoderKL.

    Raises:
        UserError: there is no config, it is another model's, or a value is not valid.
    """
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise UserError(f"{folder} is not a diffusers VAE folder: no readable {CONFIG}") from error
    stored = typed_json.parse(content, f"no readable {CONFIG} in {folder}: it", _LIMIT)
    if not isinstance(stored, dict):
        raise UserError(f"{folder} is not a diffusers VAE folder: no readable {CONFIG}")
    kind = stored.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UserError(f"{folder} holds a {kind!s:.60}; an AutoencoderKL is needed")
    config = typed_json.fit(VaeConfig, stored, str(path))
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name)
        if values is not None and len(values) != config.latent_channels:
            raise UserError(f"{path}: {name} must have {config.latent_channels} numbers")
    if (
        not len(config.block_out_channels)
        == len(config.down_block_types)
        == len(config.up_block_types)
    ):
        raise UserError(f"{path}: block_out_channels and the block types must be equally many")
    return stored


def check_weights(folder: Path) -> None:
    """Refuses a folder whose weights are not safetensors files directly in it.

    Raises:
        UserError: they are not; the message names the file.
    """
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"cannot load a VAE from {str(folder)!r}: it has no {WEIGHTS}")
        return
    with index.open("rb") as file:
        told = typed_json.parse(file.read(_LIMIT + 1), str(index), _LIMIT)
    pieces = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(pieces, dict) or not isinstance(told.get("metadata"), dict):
        raise UserError(f"{index} is no index of weights")
    for name in pieces.values():
        if not isinstance(name, str) or not _PIECE.fullmatch(name):
            raise UserError(
                f"{index} names {name!r:.80}: weights are read from .safetensors beside it only"
            )
        if not (folder / name).is_file():
            raise UserError(f"{index} names {name}, which is not there")
