# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of diffusers: its own `DiTTransformer2DModel`, or the one that we export.

diffusers gives every block an embedder of time and class of its own. In converted weights of the
official DiT all are the same, and one is taken. Its features of the time have other frequencies
than those that the official weights were trained with (``downscale_freq_shift=1``); here the
official ones are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ahpa_scale import storage, typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models.description import DESCRIPTION, ModelDescription, WeightsKind
from ahpa_scale.models.dit_layers import position_embedding
from ahpa_scale.models.vae_config import LatentScaling, complete_config
from ahpa_scale.models.vae_files import CONFIG, WEIGHTS, read_config
from ahpa_scale.tensor_files import read_safetensors

INDEX, TRANSFORMER, VAE, SCHEDULER = "model_index.json", "transformer", "vae", "scheduler"
#: Class of the transformer in folders that we export.
EXPORTED_CLASS = "AhpaScaleDiT"
_DIFFUSERS_CLASS = "DiTTransformer2DModel"
_LIMIT = 32 << 20
_Few = Annotated[int, Field(ge=1, le=10_000)]


class _DiTConfig(BaseModel):
    """The keys of diffusers' config that say what network it is, with diffusers' defaults."""

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    num_attention_heads: _Few = 16
    attention_head_dim: _Few = 72
    in_channels: _Few = 4
    out_channels: _Few | None = None
    num_layers: _Few = 28
    sample_size: _Few = 32
    patch_size: _Few = 2
    num_embeds_ada_norm: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    attention_bias: Literal[True] = True
    norm_elementwise_affine: Literal[False] = False


class _Schedule(BaseModel):
    """DDPM's schedule, on which the official DiT was trained; anything else is refused."""

    model_config = {**typed_json.STRICT, "extra": "ignore"}

    num_train_timesteps: Literal[1000] = 1000
    beta_schedule: Literal["linear"] = "linear"
    prediction_type: Literal["epsilon"] = "epsilon"
    beta_start: Annotated[float, Field(ge=1e-4, le=1e-4)] = 1e-4
    beta_end: Annotated[float, Field(ge=0.02, le=0.02)] = 0.02


def is_diffusers(folder: Path) -> bool:
    """Whether a local folder is a pipeline of diffusers, or a transformer out of one."""
    return (folder / INDEX).is_file() or (folder / WEIGHTS).is_file()


def read_diffusers(folder: Path, where: str, kind: WeightsKind | None = None) -> StoredModel:
    """Reads the transformer of a diffusers folder.

    Args:
        folder: a pipeline's folder, or that of its transformer.
        where: its name in messages.
        kind: 'ema' or 'model' refuses a folder that tells that it holds the other kind.

    Raises:
        UserError: it holds another model, or is damaged.
    """
    inner = folder / TRANSFORMER if (folder / INDEX).is_file() else folder
    config = _json(inner / CONFIG)
    name = config.get("_class_name")
    if name not in (EXPORTED_CLASS, _DIFFUSERS_CLASS):
        raise UserError(f"{where} holds a {name!s:.60}; {_DIFFUSERS_CLASS} is read")
    if not (inner / WEIGHTS).is_file():
        raise UserError(f"{where} has no {WEIGHTS}")
    weights, facts = read_safetensors(inner / WEIGHTS, str(inner / WEIGHTS))
    if name == EXPORTED_CLASS:
        told = facts.get(DESCRIPTION)
        if told is None:
            raise UserError(f"{where} does not describe its model: export it again")
        described = ModelDescription.from_json(told, where)
        described.check_kind(kind, where)
        return StoredModel(_with_vae(described, folder), weights, where)
    described = _described(typed_json.fit(_DiTConfig, config, str(inner / CONFIG)), folder)
    described.check_kind(kind, where)
    return StoredModel(described, _by_official_names(weights, described, where), where)


def _described(config: _DiTConfig, folder: Path) -> ModelDescription:
    outputs = config.out_channels or config.in_channels
    if outputs not in (config.in_channels, 2 * config.in_channels):
        raise UserError(f"{folder} predicts {outputs} channels of {config.in_channels}")
    schedule = folder / SCHEDULER / "scheduler_config.json"
    if schedule.is_file():
        typed_json.fit(_Schedule, _json(schedule), str(schedule))
    described = ModelDescription(
        depth=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        heads=config.num_attention_heads,
        patch_size=config.patch_size,
        input_size=config.sample_size,
        in_channels=config.in_channels,
        num_classes=config.num_embeds_ada_norm,
        learn_sigma=outputs != config.in_channels,
        path="vp",
        convention="dit-eps",
        classes=_classes(folder, config.num_embeds_ada_norm),
        run_name=folder.name[:200],
    )
    described = _with_vae(described, folder)
    problem = described.contradiction()
    if problem is not None:
        raise UserError(f"{folder} is no model that can be built: {problem}")
    return described


def _with_vae(described: ModelDescription, folder: Path) -> ModelDescription:
    """Names the VAE in the folder, if there is one."""
    if not (folder / VAE / CONFIG).is_file():
        return described
    config = complete_config(read_config(folder / VAE))
    scaling = described.scaling or LatentScaling.from_config(config)
    return replace(described, vae=str(folder / VAE), scaling=scaling)


def _classes(folder: Path, number: int) -> tuple[str, ...]:
    """Class names, which `DiTPipeline` keeps as ``id2label``; empty without all of them."""
    index = _json(folder / INDEX) if (folder / INDEX).is_file() else {}
    labels = index.get("id2label")
    if not isinstance(labels, dict):
        return ()
    names = [labels.get(str(label)) for label in range(number)]
    return tuple(str(name)[:4096] for name in names) if all(map(_is_text, names)) else ()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = typed_json.parse(storage.read_bytes(path, _LIMIT), str(path), _LIMIT)
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content


def _by_official_names(
    theirs: Mapping[str, Tensor], told: ModelDescription, where: str
) -> dict[str, Tensor]:
    """diffusers' weights by the official DiT's names (``convert_dit_to_diffusers.py``)."""
    left = dict(theirs)

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"{where} lacks {name!r}: it belongs to another configuration")
        return left.pop(name)

    ours = {"pos_embed": position_embedding(told.width, told.geometry().grid)[None]}
    for part in ("weight", "bias"):
        ours[f"x_embedder.proj.{part}"] = take(f"pos_embed.proj.{part}")
        ours[f"final_layer.adaLN_modulation.1.{part}"] = take(f"proj_out_1.{part}")
        ours[f"final_layer.linear.{part}"] = take(f"proj_out_2.{part}")
    for number in range(told.depth):
        block, place = f"blocks.{number}", f"transformer_blocks.{number}"
        for name, its in _EMBEDDERS.items():
            value = take(f"{place}.norm1.emb.{its}")
            if not torch.equal(ours.setdefault(name, value), value):
                raise UserError(
                    f"{where} has another {its} in block {number} than in the first: only weights "
                    "that were converted from the official DiT's can be read"
                )
        for part in ("weight", "bias"):
            heads = [take(f"{place}.attn1.to_{each}.{part}") for each in "qkv"]
            ours[f"{block}.attn.qkv.{part}"] = torch.cat(heads)
            for name, its in _LAYERS.items():
                ours[f"{block}.{name}.{part}"] = take(f"{place}.{its}.{part}")
    if left:
        raise UserError(f"{where} has a strange {next(iter(left))!r:.200}")
    return ours


_EMBEDDERS = {
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}
_LAYERS = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
