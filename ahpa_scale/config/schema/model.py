# SPDX-License-Identifier: Apache-2.0
"""What is trained and on what: backbone, interpolant, VAE and data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ahpa_scale.config.schema.fields import (
    AnyPath,
    DataPath,
    LocalPath,
    Section,
    Size,
    Text,
    VaePath,
)
from ahpa_scale.models.dit_config import DiTGeometry, resolve_geometry


class Model(Section):
    """The Diffusion Transformer."""

    name: Text = Field(
        "XL/2", description="Size (tiny, S, B, L, XL) and patch side in latent pixels, as in 'B/2'."
    )
    depth: int | None = Field(
        None, ge=1, le=1000, description="Number of blocks; null: the size's own."
    )
    width: int | None = Field(
        None, ge=1, le=100_000, description="Channels per token; null: the size's own."
    )
    heads: int | None = Field(
        None, ge=1, le=10_000, description="Attention heads; null: the size's own."
    )
    input_size: int = Field(
        32,
        ge=1,
        le=4096,
        description="Side of the latent, in latent pixels (picture side / VAE downsampling).",
    )
    in_channels: int = Field(4, ge=1, le=4096, description="Channels of the latent.")
    num_classes: int = Field(
        1000,
        ge=1,
        le=10_000_000,
        description="Number of classes; 1 is unconditional on any data set: labels are ignored.",
    )
    qk_norm: bool = Field(False, description="Normalise queries and keys in attention.")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of labels replaced by the null class, for guidance."
    )
    weights: AnyPath | None = Field(
        None,
        description="Weights that a new run starts from: a checkpoint, an exported or official "
        "file, a diffusers folder; null: drawn at random.",
    )

    @property
    def unconditional(self) -> bool:
        """Whether labels play no part."""
        return self.num_classes == 1

    def geometry(self) -> DiTGeometry:
        """The backbone's depth, width, heads and token grid.

        Raises:
            ValueError: an unknown name, or numbers that do not fit together.
        """
        return resolve_geometry(
            self.name,
            input_size=self.input_size,
            depth=self.depth,
            width=self.width,
            heads=self.heads,
        )


class Flow(Section):
    """The interpolant and how its times are drawn; t = 0 is data, t = 1 is noise."""

    path: Literal["linear", "gvp"] = Field(
        "linear", description="linear: x_t = (1-t) x + t eps; gvp: cosine and sine of pi t / 2."
    )
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="Distribution of t in training."
    )
    logit_mean: float = Field(0.0, description="Mean of logit(t); logit_normal only.")
    logit_std: float = Field(1.0, gt=0, description="Deviation of logit(t); logit_normal only.")


class Vae(Section):
    """The frozen autoencoder of latent diffusion."""

    path: VaePath = Field(
        "stabilityai/sd-vae-ft-mse",
        description="A local diffusers folder, 'demo' (embedded), a hub id or hub id@revision.",
    )


class Data(Section):
    """The prepared data set and how it is read."""

    remote: DataPath | None = Field(
        None, description="URL or path of the data set's store; null: it lies in `local` already."
    )
    local: LocalPath | None = Field(
        None,
        description="Folder of the local cache or, without `remote`, of the data set. Required.",
    )
    online: bool = Field(
        False,
        description="Encode pictures with the frozen VAE while training, instead of cached "
        "latents.",
    )
    num_workers: int = Field(
        8, ge=0, le=1024, description="Loader processes per rank; 0 loads in the trainer."
    )
    num_canonical_nodes: int = Field(
        1,
        ge=1,
        le=100_000,
        description="Nodes the sample order is laid out for; fix it to resume on another "
        "number of nodes.",
    )
    cache_limit: Size | None = Field(
        None, description="Most bytes of the local cache per node, as in '500gb'; null: no limit."
    )
