# SPDX-License-Identifier: Apache-2.0
"""Options of an evaluation, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from ahpa_scale import storage
from ahpa_scale.config.checks.data import PLACEHOLDER
from ahpa_scale.config.errors import choices
from ahpa_scale.config.networks import INCEPTION, ChosenNetwork, read_networks
from ahpa_scale.config.schema import parse_duration, parse_time
from ahpa_scale.errors import UserError
from ahpa_scale.sampling.settings import SamplerOptions

KINDS = ("ema", "model")
_LEAST = {
    "pictures": 1,
    "bins": 1,
    "batch_size": 1,
    "samples": 2,
    "ep_fid": 0,
}
_POLL = 60.0
#: Equal bins of t, in the run and after it.
BINS = 10


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how.

    Attributes:
        checkpoints: a folder or URL of checkpoints, or one of them.
        data: held-out latents, a folder or a URL.
        out: folder or URL for rows, samples and the figure.
        newest: only the newest checkpoint, not all that have no row.
        follow: wait for new checkpoints.
        every: time between two looks, such as ``1m``; None: a minute.
        until: following ends with the checkpoint of this batch, such as ``400000ba``.
        idle: following ends after this time without a new checkpoint.
        weights: one of KINDS; None: the averages if there are any.
        pictures: at most this many of `data`; None: all.
        bins: equal bins of t.
        samples: pictures to generate and compare with the reference; None: none.
        reference: real pictures: a local folder, an ``.npz``, or a data set of pictures.
        reference_statistics: ``.npz`` with mu and sigma of a network's features, local or a URL.
        features: networks that compare pictures, see `read_networks`.
        inception: torch-fidelity's weights file; None lets the library fetch it.
        sampler: changes of the run's own sampler.
        against: another run's `evaluation.jsonl`, or its folder; None: none.
        ep_fid: the FID of EP_FID@k; None: it is not reported.
        batch_size: pictures per forward pass.
        device: torch device.
        progress: whether to show rate and time left on stderr.
    """

    checkpoints: str
    data: str
    out: str = "evaluation"
    newest: bool = False
    follow: bool = False
    every: str | None = None
    until: str | None = None
    idle: str | None = None
    weights: str | None = None
    pictures: int | None = None
    bins: int = BINS
    samples: int | None = None
    reference: str | None = None
    reference_statistics: str | None = None
    features: str = INCEPTION
    inception: str | None = None
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    against: str | None = None
    ep_fid: float | None = None
    batch_size: int = 64
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        problem = next(self._problems(), None)
        if problem is not None:
            raise UserError(problem)

    @property
    def kind(self) -> Literal["ema", "model"] | None:
        """`weights`, as a type that `checkpoint.weights` accepts."""
        return cast("Literal['ema', 'model'] | None", self.weights)

    @property
    def networks(self) -> tuple[ChosenNetwork, ...]:
        """Networks that compare pictures; none without samples."""
        return () if self.samples is None else read_networks(self.features, self.inception)

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks."""
        return _POLL if self.every is None else parse_duration(self.every)

    @property
    def idle_seconds(self) -> float | None:
        """Seconds without a new checkpoint after which following ends; None: no limit."""
        return None if self.idle is None else parse_duration(self.idle)

    @property
    def last_batch(self) -> int | None:
        """Following ends with this batch's checkpoint; None: with the run's last."""
        return None if self.until is None else int(parse_time(self.until)[0])

    def _problems(self) -> Iterator[str]:
        for name in ("checkpoints", "data", "out", "reference_statistics", "against"):
            place = getattr(self, name)
            if place is not None and PLACEHOLDER in place:
                yield f"put your own bucket in place of {PLACEHOLDER} in {place}"
        for name, least in _LEAST.items():
            value = getattr(self, name)
            # Written so that NaN fails too.
            if value is not None and not value >= least:
                yield f"{_option(name)} must be at least {least}, not {value}"
        if self.weights is not None and self.weights not in KINDS:
            yield f"unknown --weights {self.weights!r}; {choices(self.weights, KINDS)}"
        yield from self._times()
        yield from self._judge()

    def _times(self) -> Iterator[str]:
        for name in ("every", "until", "idle"):
            if getattr(self, name) is not None and not self.follow:
                yield f"{_option(name)} belongs to --follow"
        if self.until is not None and parse_time(self.until)[1] != "ba":
            yield f"--until is {self.until!r}: give batches, such as 400000ba"
        for name in ("every", "idle"):
            if getattr(self, name) is not None:
                parse_duration(getattr(self, name))

    def _judge(self) -> Iterator[str]:
        given = [n for n in ("reference", "reference_statistics") if getattr(self, n) is not None]
        if self.samples is None:
            asked = [*given, "inception", "ep_fid"] + ["features"] * (self.features != INCEPTION)
            for name in asked:
                if getattr(self, name) is not None:
                    yield f"{_option(name)} belongs to --samples, the number of pictures to judge"
            return
        if len(given) != 1:
            yield (
                "--samples needs something to compare with: either --reference, a folder of "
                "pictures, or --reference-statistics"
            )
        if self.inception is not None and not storage.local_path(self.inception).is_file():
            yield f"--inception: there is no file {self.inception}"
        named = [network.name for network in self.networks]  # refuses what can't be read
        if self.inception is not None and INCEPTION not in named:
            yield f"--inception belongs to --features {INCEPTION}"
        if self.ep_fid is not None and INCEPTION not in named:
            yield f"--ep-fid belongs to --features {INCEPTION}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
