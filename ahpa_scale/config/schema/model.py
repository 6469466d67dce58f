# SPDX-License-Identifier: Apache-2.0
"""What is trained and on what: backbone, interpolant, VAE and data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ahpa_scale import paths
from ahpa_scale.config.schema.fields import (
    AnyPath,
    DataPath,
    List,
    LocalPath,
    Section,
    Size,
    Text,
    VaePath,
)
from ahpa_scale.models.dit_config import LARGEST_GRID, DiTGeometry, resolve_geometry


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
    input_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_GRID,
        description="Side of the latent, in latent pixels (picture side / VAE downsampling); null: "
        "the data set's.",
    )
    in_channels: int | None = Field(
        None, ge=1, le=4096, description="Channels of the latent; null: the data set's."
    )
    num_classes: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Number of classes; 1 is unconditional on any data set: labels are ignored; "
        "null: the data set's.",
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

    def sizes(self) -> tuple[int, int, int]:
        """Side and channels of the latent, and number of classes, once `fitted` has filled them
        in.
        """
        sizes = (self.input_size, self.in_channels, self.num_classes)
        side, channels, classes = (size or 0 for size in sizes)
        assert None not in sizes, "the data set's card tells them"
        return side, channels, classes

    def geometry(self) -> DiTGeometry:
        """The backbone's depth, width, heads and token grid. Without `input_size` the grid counts
        as the largest that there is.

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


class DataStream(Section):
    """One of several prepared data sets."""

    url: DataPath = Field(description="URL or folder of the data set; a folder is read in place.")
    proportion: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Share of each pass, relative to the other sets'; null: `repeat` counts.",
    )
    repeat: float | None = Field(
        None, gt=0, le=1e6, description="How often a pass reads the set; null: once."
    )
    skip: AnyPath | None = Field(
        None, description="Text file with indices of samples to leave out, one a line; null: none."
    )


class Data(Section):
    """The prepared data and how they are read."""

    remote: DataPath | None = Field(
        None, description="URL or path of the data set's store; null: it lies in `local` already."
    )
    local: LocalPath | None = Field(
        None,
        description="Folder of the local cache or, without `remote`, of the data set. Required, "
        "except for `streams` of folders only.",
    )
    streams: List[DataStream] | None = Field(
        None,
        description="Several data sets, or one with a skip list; null: the one of `remote` or "
        "`local`.",
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

    @property
    def places(self) -> tuple[str, ...]:
        """Folders and URLs of all data sets that are read."""
        if self.streams is not None:
            return tuple(stream.url for stream in self.streams)
        return (self.remote or str(self.local),)

    @property
    def key(self) -> str:
        """The key that names the data."""
        if self.streams is not None:
            return "data.streams"
        return "data.local" if self.remote is None else "data.remote"

    @property
    def cached(self) -> bool:
        """Whether shards are copied to a local cache."""
        if self.streams is not None:
            return any(paths.is_url(place) for place in self.places)
        return self.remote is not None
