# SPDX-License-Identifier: Apache-2.0
"""What a study's data sets are made from, and the digest that names each. Free of torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ahpa_scale import storage
from ahpa_scale.config.errors import choices
from ahpa_scale.config.schema.fields import List, Section
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.data.idx import NAMES
from ahpa_scale.errors import UserError
from ahpa_scale.models.vae_config import DEMO_VAE, complete_config, downsample, load_vae_config

#: Raise it when the code that builds data sets changes what it builds.
FORMAT = 1


class VaeRecipe(Section):
    """An autoencoder to train on the data set's own training pictures."""

    widths: List[int] = Field((32, 64, 96), description="Encoder widths, one per resolution.")
    layers: int = Field(1, ge=1, description="Residual blocks per resolution.")
    latent_channels: int = Field(8, ge=1, description="Channels of the latent.")
    steps: int = Field(3000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Pictures per step.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    kl_weight: float = Field(1e-4, ge=0, description="Weight of the KL divergence.")

    def config(self) -> dict[str, Any]:
        """The diffusers config of the architecture."""
        return complete_config(
            {
                "block_out_channels": list(self.widths),
                "layers_per_block": self.layers,
                "latent_channels": self.latent_channels,
                "down_block_types": ["DownEncoderBlock2D"] * len(self.widths),
                "up_block_types": ["UpDecoderBlock2D"] * len(self.widths),
                "norm_num_groups": 8,
            }
        )


class Common(Section):
    """What all recipes share."""

    size: int = Field(32, ge=8, description="Side of the pictures, in pixels.")
    vae: str | VaeRecipe = Field(VaeRecipe(), description="'demo', a folder, or how to train one.")
    scaling: Literal["config", "channel"] = Field("config", description="See `prepare`.")
    count: int | None = Field(None, ge=16, description="Training pictures; null: all.")
    test_count: int | None = Field(None, ge=8, description="Test pictures; null: all.")
    heldout: int = Field(2048, ge=8, description="Test pictures for the held-out flow loss.")
    judge_steps: int | None = Field(None, ge=1, description="Training of the judge; null: its own.")
    teacher_steps: int | None = Field(
        None,
        ge=0,
        description="Training of the positive control's teacher; null: its own, 0: none, and no "
        "external features where there is no oracle.",
    )
    seed: int = Field(0, ge=0, description="Of VAE, judge, teacher, and of drawn pictures.")
    overrides: dict[str, Any] = Field({}, description="Overrides of the training YAML.")

    def vae_config(self) -> dict[str, Any]:
        """Architecture of the autoencoder.

        Raises:
            UserError: no such folder.
        """
        if isinstance(self.vae, VaeRecipe):
            return self.vae.config()
        config = load_vae_config(self.vae)
        if config is None:
            raise UserError(f"vae {self.vae!r} is neither 'demo' nor a folder")
        return config

    @property
    def latent_size(self) -> int:
        """Side of the latent."""
        return self.size // downsample(self.vae_config())

    def num_classes(self) -> int:
        """Classes of the pictures.

        Raises:
            UserError: the input is not there, or the recipe's own numbers don't fit.
        """
        raise NotImplementedError

    def material(self) -> Any:
        """What represents the pictures in the digest."""
        raise NotImplementedError

    def digest(self) -> str:
        """16 hex digits that name what this recipe builds; the place of its input doesn't matter.

        Raises:
            UserError: the input is not there.
        """
        told = self.model_dump(mode="json", exclude={"overrides", "folder"})
        if isinstance(self.vae, str) and self.vae != DEMO_VAE:
            told["vae"] = _files_digest(storage.local_path(self.vae), ("*.json", "*.safetensors"))
        told |= {"format": FORMAT, "material": self.material()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class FashionRecipe(Common):
    """Fashion-MNIST from its four idx files."""

    recipe: Literal["fashion"]
    folder: str = Field(description="Folder of the idx files, gzipped or not.")

    def num_classes(self) -> int:
        return len(NAMES["fashion"])

    def material(self) -> Any:
        return _files_digest(storage.local_path(self.folder), ("*-ubyte*",))


class DemoRecipe(Common):
    """Drawn pictures, whose factors are known."""

    recipe: Literal["demo"]
    preset: Literal["easy", "medium", "hard"] = Field("hard", description="Starting point.")
    spec: dict[str, Any] = Field({}, description="Knobs of DemoSpec that replace the preset's.")
    count: int | None = Field(20_000, ge=16, description="Training pictures.")
    test_count: int | None = Field(4000, ge=8, description="Test pictures.")

    factor_steps: int | None = Field(
        None, ge=1, description="Training of the factors' judge; null: its own."
    )

    factor_pictures: int | None = Field(
        None, ge=4, description="Pictures that the factors' judge sees; null: its own."
    )

    def demo_spec(self) -> DemoSpec:
        """The pictures' specification.

        Raises:
            UserError: an unknown knob, or a value out of range.
        """
        known = [field.name for field in fields(DemoSpec) if field.name != "size"]
        for name in self.spec:
            if name not in known:
                raise UserError(f"spec: no knob {name!r}; {choices(name, known)}")
        return DemoSpec.preset(self.preset, **{**self.spec, "size": self.size})

    def num_classes(self) -> int:
        return self.demo_spec().num_classes

    def material(self) -> Any:
        return "demo"


class FolderRecipe(Common):
    """A folder of labelled pictures, one sub-folder per class, split by the names' hash."""

    recipe: Literal["folder"]
    folder: str = Field(description="Folder of class sub-folders.")
    test_share: float = Field(0.15, gt=0, lt=1, description="Share of pictures held out.")

    def num_classes(self) -> int:
        return sum(1 for path in self._root().iterdir() if _is_class(path))

    def _root(self) -> Path:
        root = storage.local_path(self.folder)
        if not root.is_dir():
            raise UserError(f"no folder {root}")
        return root

    def material(self) -> Any:
        root = self._root()
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [[str(path.relative_to(root)), path.stat().st_size] for path in files]


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _files_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not files:
        raise UserError(f"nothing like {' or '.join(patterns)} in {folder}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
