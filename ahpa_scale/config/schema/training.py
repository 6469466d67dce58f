# SPDX-License-Identifier: Apache-2.0
"""How a run is trained and watched: optimizer, EMA, checkpoints, logging, evaluation, samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from ahpa_scale.config.schema.fields import (
    AnyPath,
    BatchInterval,
    DataPath,
    Duration,
    Interval,
    List,
    Moment,
    Section,
    Text,
    parse_total_time,
)
from ahpa_scale.errors import UserError
from ahpa_scale.sampling.settings import SamplerSettings

EMA_DECAY = 0.9999
#: wandb's own word for a project that nobody named; it may know a better one, from the environment.
WANDB_CHOOSES = "uncategorized"
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ClassIndex = Annotated[int, Field(ge=0)]


def _decay(value: Any) -> float | str:
    if isinstance(value, str):
        try:
            return parse_total_time(value)
        except UserError as error:
            raise UserError(f"{error}; or write a number, as in 0.9999") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{value!r} is neither a number nor a half-life; write 0.9999, or '7000ba'")
    if not 0 < value < 1:
        raise UserError(f"{value!r} must be above 0 and below 1")
    return value


_Share = Annotated[float, Field(gt=0, lt=1)]
# Errors of a union would name each of its branches; one validator names only the key.
Decay = Annotated[float | str, PlainValidator(_decay, json_schema_input_type=_Share | str)]
"""Of an average: a number, or a half-life."""


class Optimizer(Section):
    """AdamW, and the learning rate over the run."""

    lr: float = Field(1e-4, gt=0, le=1, description="Learning rate.")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.999), description="AdamW's averaging coefficients."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    warmup: Moment = Field("0ba", description="Linear warm-up of the learning rate; '0ba': none.")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = Field(
        "constant",
        description="After the warm-up: constant; a cosine or linear fall over the run; wsd: "
        "constant, then a linear fall.",
    )
    final: Share = Field(0.0, description="Share of lr at the end; all but constant.")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="Share of the run that the fall takes; wsd only."
    )
    grad_clip: float | None = Field(
        1.0, gt=0, description="Largest gradient norm; null: no clipping."
    )


class Ema(Section):
    """Exponential moving average of the backbone's weights."""

    decay: Decay | None = Field(
        EMA_DECAY, description="Decay per batch, or a time: its half-life; null: no average."
    )


class Checkpoint(Section):
    """Where a run is saved and taken up again."""

    save_folder: AnyPath | None = Field(
        None, description="Folder or URL of the checkpoints; null: none are written."
    )
    save_interval: Interval = Field("5000ba", description="Time between checkpoints.")
    load_path: AnyPath | None = Field(
        None,
        description="Checkpoint to start from, or a folder whose newest one is meant; null: from "
        "scratch.",
    )
    autoresume: bool = Field(
        False,
        description="Take up this run_name's newest checkpoint in save_folder, if there is one.",
    )
    accept_other_data: bool = Field(
        False,
        description="Go on with another data set than the checkpoint was trained on, from the "
        "beginning of a pass.",
    )
    keep: int | None = Field(
        None, ge=1, le=1_000_000, description="Newest checkpoints kept; null: all."
    )
    keep_every: BatchInterval | None = Field(
        None, description="Besides, keep those at multiples of this, as in '50000ba'; null: none."
    )
    grace: Duration | None = Field(
        "2m",
        description="Time from SIGTERM or SIGUSR1 in which the run saves and leaves; null: no end.",
    )


class Logging(Section):
    """What is written down, and how often."""

    interval: Interval = Field(
        "50ba", description="Time between lines of metrics.jsonl and console."
    )
    router_interval: Interval = Field("1000ba", description="Time between pictures of the router.")
    tensorboard: bool = Field(False, description="Also log to TensorBoard.")
    wandb: Text | None = Field(
        None,
        description="Project of Weights & Biases to log to as well; uncategorized: the one that "
        "wandb itself chooses; null: none.",
    )
    format: Literal["text", "json"] = Field(
        "text", description="What console lines are; json: an object each, on stderr."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="TCP port of each node's first rank, with /metrics for Prometheus and "
        "/healthz; null: none.",
    )


class HeldOut(Section):
    """Held-out loss, and a Frechet distance of samples, of the averages during training; the best
    checkpoint is kept.
    """

    data: DataPath | None = Field(
        None, description="Held-out latents, a folder or a URL; null: none are looked at."
    )
    interval: Interval = Field(
        "5000ba",
        description="Time between measurements; checkpoint.save_interval or a divisor of it finds "
        "the best checkpoint among all.",
    )
    pictures: int | None = Field(
        None, ge=1, description="At most this many held-out latents; null: all."
    )
    samples: int | None = Field(
        None,
        ge=2,
        description="Pictures to draw, with the sampler of `sampling`, and compare with the "
        "reference; null: none.",
    )
    reference: AnyPath | None = Field(
        None, description=".npz of a network's mean and covariance of real pictures."
    )
    features: Text = Field(
        "inception", description="The network, as `ahpa-scale evaluate --features` takes it."
    )


class Sampling(Section):
    """Sample grids during training."""

    interval: Interval | None = Field(
        None, description="Time between sample grids, four pictures a class; null: none."
    )
    classes: List[ClassIndex] | None = Field(
        None, description="Classes to show, from 0; null: the first 8."
    )
    preset: Text | None = Field(
        None,
        description="Settings by name, as in 'fast' (docs/sampling.md has all); the keys below "
        "change some.",
    )
    steps: int | None = Field(
        None, ge=1, le=100_000, description="Steps of the sampler; null: the preset's, or 50."
    )
    method: Literal["euler", "heun", "sde"] | None = Field(
        None, description="Sampler; null: the preset's, or euler."
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=100,
        description="Classifier-free guidance; 1: none; null: the preset's, or 1.",
    )
    guidance_interval: Annotated[tuple[Share, Share], Field(strict=False)] | None = Field(
        None,
        description="Guide at noise levels within it only, as in [0, 0.7]; null: the preset's, or "
        "all.",
    )
    time_shift: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="Above 1: smaller steps at high noise (euler, heun); null: the preset's, or 1.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the samples' noise.")

    def sampler(self) -> SamplerSettings:
        """The settings of the sampler.

        Raises:
            UserError: an unknown preset, or settings that don't go together.
        """
        names = ("steps", "method", "guidance_scale", "guidance_interval", "time_shift", "seed")
        given = {name: getattr(self, name) for name in names}
        return SamplerSettings().changed(self.preset, **given)
