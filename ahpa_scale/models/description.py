# SPDX-License-Identifier: Apache-2.0
"""What a model must tell before its weights are read: its shape, and how its output is meant.

Free of torch, so that the configuration can use it. An exported file holds it in its metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ahpa_scale import typed_json
from ahpa_scale.errors import UserError
from ahpa_scale.models.dit_config import DiTGeometry, resolve_geometry
from ahpa_scale.models.vae_config import LatentScaling

#: The description's key in the metadata of a safetensors file.
DESCRIPTION = "ahpa_scale.model"
FORMAT = 1

PathName = Literal["linear", "gvp", "vp"]
#: 'velocity': ours. 'sit': the official SiT's. 'dit-eps': the official DiT's.
Convention = Literal["velocity", "sit", "dit-eps"]
WeightsKind = Literal["ema", "model"]

# A text with a million class names stays below it.
_LIMIT = 32 << 20
_Side = Annotated[int, Field(ge=1, le=4096)]
_Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class ModelDescription:
    """A model that pictures can be drawn from, without its weights.

    Attributes:
        depth, width, heads: blocks, channels per token, attention heads.
        patch_size: side of a patch, in cells of the input.
        input_size: side of the input, in latent cells.
        in_channels: channels of the input.
        num_classes: labels, without the null class.
        qk_norm: whether queries and keys pass a LayerNorm.
        learn_sigma: whether the output has twice the channels, of which the first half is used.
        null_class: whether the label table has a row for "no class".
        path: the interpolant that the weights were trained on.
        convention: how the network's time and output are meant, see `models.conventions`.
        classes: class names by label; empty if not known.
        scaling: how latents of the VAE become the network's input; None if not known.
        vae: folder or hub id of the VAE; empty if not known.
        vae_identity: digest of the VAE's configuration and weights; empty if not known.
        batch: batches trained; None if not known.
        kind: 'ema' for averages, 'model' for the trained weights themselves.
        run_name: the run's name, or where the weights came from.
        sampler: settings of the run's own sampler, for `sampling.settings.settings_from`; empty if
            not known.
    """

    __pydantic_config__ = typed_json.STRICT

    depth: Annotated[int, Field(ge=1, le=1000)]
    width: Annotated[int, Field(ge=1, le=100_000)]
    heads: Annotated[int, Field(ge=1, le=10_000)]
    patch_size: _Side
    input_size: _Side
    in_channels: _Side
    num_classes: Annotated[int, Field(ge=1, le=10_000_000)]
    qk_norm: bool = False
    learn_sigma: bool = False
    null_class: bool = True
    path: PathName = "linear"
    convention: Convention = "velocity"
    classes: Annotated[tuple[_Text, ...], Field(max_length=10**6)] = ()
    scaling: LatentScaling | None = None
    vae: _Text = ""
    vae_identity: _Text = ""
    batch: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    kind: WeightsKind = "ema"
    run_name: _Text = ""
    sampler: dict[str, Any] = field(default_factory=dict)

    def geometry(self) -> DiTGeometry:
        """The transformer's shape.

        Raises:
            UserError: the numbers do not fit together.
        """
        return resolve_geometry(
            f"B/{self.patch_size}",
            input_size=self.input_size,
            depth=self.depth,
            width=self.width,
            heads=self.heads,
        )

    def class_name(self, label: int) -> str:
        """The name of a class; its number where the names are not known."""
        return self.classes[label] if self.classes else str(label)

    def check_kind(self, wanted: WeightsKind | None, where: str) -> None:
        """Refuses weights of another kind than is wanted.

        Raises:
            UserError: they are.
        """
        if wanted is not None and wanted != self.kind:
            raise UserError(f"{where} holds the kind {self.kind!r} only, not {wanted!r}")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> ModelDescription:
        """Reads what `to_json` wrote.

        Args:
            text: JSON.
            where: what it was read from, for the message.

        Raises:
            UserError: the text is damaged, of another format, or its values contradict each other.
        """
        content = typed_json.parse(text, f"the model's description in {where}", _LIMIT)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(
                f"the model's description in {where} is not of format {FORMAT}: use the version of "
                "ahpa_scale that wrote it"
            )
        described = typed_json.fit(cls, content, f"the model's description in {where}")
        problem = described.contradiction()
        if problem is not None:
            raise UserError(f"the model's description in {where} contradicts itself: {problem}")
        return described

    def contradiction(self) -> str | None:
        """Why the values cannot belong to one model; None if they can."""
        try:
            self.geometry()
        except UserError as error:
            return str(error)
        if self.classes and len(self.classes) != self.num_classes:
            return f"{self.num_classes} classes, but {len(self.classes)} names"
        if self.scaling is not None and len(self.scaling.shift) != self.in_channels:
            return f"{self.in_channels} channels, but a scaling of {len(self.scaling.shift)}"
        return None
