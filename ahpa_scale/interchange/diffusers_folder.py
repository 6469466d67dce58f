# SPDX-License-Identifier: Apache-2.0
"""Writes a model as a folder that diffusers loads without ahpa_scale.

It holds the weights, the VAE, a scheduler, class names, a card, and the code of model and pipeline.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ahpa_scale import models, storage
from ahpa_scale.errors import UserError
from ahpa_scale.interchange.diffusers_dit import EXPORTED_CLASS, INDEX, SCHEDULER, TRANSFORMER, VAE
from ahpa_scale.interchange.model_card import model_card
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models.description import DESCRIPTION, ModelDescription
from ahpa_scale.models.vae_files import CONFIG, PATTERNS, WEIGHTS, check_weights, read_config
from ahpa_scale.tensor_files import save_tensors

#: Names of the code's files in the folder, without ``.py``.
_PIPELINE, _MODEL, _LAYERS = "pipeline", "ahpa_scale_dit", "dit_layers"
_HERE, _MODELS = Path(__file__).parent, Path(str(models.__file__)).parent
#: What a file of ours imports, and what it imports in the folder.
_IMPORT = f"from ahpa_scale.models.{_LAYERS} import", f"from .{_LAYERS} import"
#: What the transformer's config takes over from the description.
_TOLD_BY_NAME = (
    *("depth", "width", "heads", "patch_size", "input_size", "in_channels", "num_classes"),
    *("qk_norm", "learn_sigma", "null_class"),
)


def write_diffusers(
    stored: StoredModel, out: Path, vae: Path | None, *, overwrite: bool = False
) -> None:
    """Writes the folder, whole or not at all.

    Args:
        stored: the model.
        out: a local folder.
        vae: a diffusers folder of the VAE, which is copied. None leaves the VAE to the user; the
            card then names it.
        overwrite: whether an existing folder is replaced.

    Raises:
        UserError: the model predicts noise, or nothing tells how its latents are scaled.
        FileExistsError: there is something already.
        OSError: the disk refused.
    """
    told = stored.description
    if told.convention == "dit-eps":
        raise UserError(
            f"{stored.place} predicts noise, as the official DiT does: diffusers has a pipeline "
            "for it already (DiTPipeline)"
        )
    if told.scaling is None:
        raise UserError(
            f"nothing tells how the latents of {stored.place} are scaled: a picture can't be drawn"
        )
    if vae is not None:
        read_config(vae)
        check_weights(vae)
    with storage.atomic_folder(out, replace=overwrite, marker=INDEX) as folder:
        _write_transformer(stored, folder / TRANSFORMER)
        if vae is not None:
            _copy_vae(vae, folder / VAE)
        library = version("diffusers")
        scheduler = {"num_train_timesteps": 1000, "shift": 1.0, "_diffusers_version": library}
        scheduler["_class_name"] = "FlowMatchEulerDiscreteScheduler"
        _write_json(folder / SCHEDULER / "scheduler_config.json", scheduler)
        shutil.copy(_HERE / "diffusers_pipeline.py", folder / f"{_PIPELINE}.py")
        (folder / "README.md").write_text(model_card(told, vae is not None), encoding="utf-8")
        _write_json(folder / INDEX, _index(told, vae is not None, library))


def _index(told: ModelDescription, with_vae: bool, library: str) -> dict[str, Any]:
    return {
        "_class_name": [_PIPELINE, "AhpaScalePipeline"],
        "_diffusers_version": library,
        "id2label": {str(label): told.class_name(label) for label in range(told.num_classes)},
        "transformer": [_MODEL, EXPORTED_CLASS],
        "vae": ["diffusers", "AutoencoderKL"] if with_vae else [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }


def _write_transformer(stored: StoredModel, folder: Path) -> None:
    told = stored.description
    assert told.scaling is not None
    config = {name: getattr(told, name) for name in _TOLD_BY_NAME}
    config |= {"time_reversed": told.convention == "sit", "_class_name": EXPORTED_CLASS}
    config |= {"latent_shift": told.scaling.shift, "latent_scale": told.scaling.scale}
    _write_json(folder / CONFIG, config)
    # A folder of this machine means nothing to who gets the weights.
    local = Path(told.vae).is_absolute() or Path(told.vae).is_dir()
    facts = {DESCRIPTION: (replace(told, vae="") if local else told).to_json(), "format": "pt"}
    save_tensors(stored.weights, folder / WEIGHTS, facts)
    code = (_HERE / "diffusers_model.py").read_text(encoding="utf-8")
    (folder / f"{_MODEL}.py").write_text(code.replace(*_IMPORT), encoding="utf-8")
    shutil.copy(_MODELS / f"{_LAYERS}.py", folder / f"{_LAYERS}.py")


def _copy_vae(source: Path, folder: Path) -> None:
    folder.mkdir()
    for pattern in PATTERNS:
        for path in source.glob(pattern):
            shutil.copy(path, folder / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
