# SPDX-License-Identifier: Apache-2.0
"""Options of a comparison of two sets of pictures, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from ahpa_scale.config.networks import ChosenNetwork, read_networks
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.networks.base import INCEPTION


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Attributes:
        made: the pictures that are judged: local folder, ``.npz``, or data set of pictures.
        reference: the pictures that they are compared with, likewise; None: they are compared with
            nothing, and only their statistics are written.
        features: networks that compare them, see `read_networks`.
        inception: torch-fidelity's weights file; None lets the library fetch it.
        size: side that picture files are cropped to; None: the smallest of both sets.
        out: JSON file to write; None: none.
        save_statistics: ``.npz`` to write statistics to: the reference's, if there is one; None:
            none.
        batch_size: pictures per forward pass.
        device: torch device.
        progress: whether to show rate and time left on stderr.
    """

    made: str
    reference: str | None = None
    features: str = INCEPTION
    inception: str | None = None
    size: int | None = None
    out: str | None = None
    save_statistics: str | None = None
    batch_size: int = 64
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        names = [network.name for network in self.networks]
        if self.inception is not None and INCEPTION not in names:
            raise UserError(f"--inception belongs to --features {INCEPTION}")
        if self.reference is None and self.save_statistics is None:
            raise UserError(
                f"{self.made} is compared with nothing: name a second set, or a file to "
                "--save-statistics"
            )
        if self.reference is None and self.out is not None:
            raise UserError("--out belongs to two sets of pictures")
        if self.save_statistics is not None:
            self._check_statistics(names)

    @property
    def networks(self) -> tuple[ChosenNetwork, ...]:
        """The networks, in order."""
        return read_networks(self.features, self.inception)

    def _check_statistics(self, names: list[str]) -> None:
        place = str(self.save_statistics)
        if not place.endswith(".npz"):
            raise UserError(f"--save-statistics: {place} must end in .npz: that is what is written")
        if len(names) > 1:
            raise UserError(
                f"--save-statistics writes those of one network: leave one of {', '.join(names)} "
                "in --features"
            )
