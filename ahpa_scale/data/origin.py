# SPDX-License-Identifier: Apache-2.0
"""What a preparation was made from. Work that goes on later, or elsewhere, must be of the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.codec_file import CODEC_NAME
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.sources import Source, StoredSource
from ahpa_scale.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Options and pictures of a preparation.

    Attributes:
        options: digest of the card and the options.
        pictures: per class, the number and digest of the pictures that this machine sees.
        codec: digest of the levels' codec; empty while it is not known, and with pooled levels.
    """

    options: str
    pictures: dict[str, str]
    codec: str = ""

    @classmethod
    def of(cls, settings: PrepareSettings, card: DatasetCard, pictures: Source) -> Origin:
        """The origin of a preparation, before anything of it is made."""
        content: list[Any] = [
            card.to_json(),
            settings.scaling,
            settings.shuffle_seed,
            repr(settings.demo),
        ]
        content += [settings.class_depth, settings.image_column, settings.label_column]
        options = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        if not isinstance(pictures, StoredSource):
            return cls(options, {})
        return cls(options, pictures.digests(settings.workers))

    def check(self, told: Origin, where: str, advice: str = "remove its folder") -> None:
        """Refuses what was made from something else.

        Args:
            told: the origin that was noted.
            where: where it was noted.
            advice: what to do.

        Raises:
            UserError: it was; the message names the difference if it is known.
        """
        for name in {**told.pictures, **self.pictures}:
            there, here = (each.pictures.get(name, "no pictures") for each in (told, self))
            if there != here:
                raise UserError(
                    f"{where} was made of other files: class {shown(name)} had {there}, and this "
                    f"machine sees {here}; give all machines the same files, or {advice}"
                )
        if self.codec and told.codec != self.codec:
            raise UserError(f"{where} was encoded with another {CODEC_NAME}: {advice}")
        if told.options != self.options:
            raise UserError(
                f"{where} belongs to a preparation with other options, pictures, VAE or torch: "
                f"{advice}, or choose another out"
            )
