# SPDX-License-Identifier: Apache-2.0
"""The root of the schema: one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, PrivateAttr

from ahpa_scale.config.schema.alignment import Alignment
from ahpa_scale.config.schema.fields import LocalPath, Name, Section, TotalTime
from ahpa_scale.config.schema.guard import Guard
from ahpa_scale.config.schema.model import Data, Flow, Model, Vae
from ahpa_scale.config.schema.parallelism import Parallelism
from ahpa_scale.config.schema.training import (
    Checkpoint,
    Ema,
    HeldOut,
    Logging,
    Optimizer,
    Sampling,
)
from ahpa_scale.config.schema.watch import Watch
from ahpa_scale.errors import UserError


def _microbatch(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{value!r} is neither a whole number nor 'auto'")
    if value < 1:
        raise UserError(f"{value} must be at least 1")
    return value


_Samples = Annotated[int, Field(ge=1)] | Literal["auto"]
# Errors of a union would name each of its branches; one validator names only the key.
Microbatch = Annotated[
    int | Literal["auto"], PlainValidator(_microbatch, json_schema_input_type=_Samples)
]


def _output_dir(validated: dict[str, Any]) -> str:
    return f"runs/{validated['run_name']}"


class Config(Section):
    """One run, complete: what the YAML and the command line say, and defaults for the rest."""

    run_name: Name = Field(description="Name of the run, for folders and logs.")
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="Seed of initialisation, data order and noise."
    )
    max_duration: TotalTime = Field(description="Length of the run, as in '400000ba' or '80ep'.")
    global_train_batch_size: int = Field(
        256, ge=1, le=10_000_000, description="Samples per optimizer step, over all devices."
    )
    device_train_microbatch_size: Microbatch | None = Field(
        None,
        description="Samples per device and forward pass; null: the whole share at once; auto: "
        "halved each time that memory runs out (engine ddp on a gpu).",
    )
    precision: Literal["fp32", "amp_bf16", "amp_fp16", "bf16"] = Field(
        "amp_bf16",
        description="Number format of the forward and backward pass; bf16: amp_bf16 that also "
        "sends weights or gradients in bfloat16, while float32 shards are updated (engines that "
        "shard).",
    )
    device: Literal["cpu", "gpu"] | None = Field(None, description="null: gpu where there is one.")
    output_dir: LocalPath = Field(
        default_factory=_output_dir,
        description="Folder for metrics, figures and the resolved configuration; default "
        "runs/<run_name>.",
    )
    parallelism: Parallelism = Field(Parallelism(), description="Engine.")
    model: Model = Field(Model(), description="Backbone.")
    flow: Flow = Field(Flow(), description="Interpolant.")
    vae: Vae = Field(Vae(), description="Frozen autoencoder.")
    data: Data = Field(Data(), description="Data set.")
    alignment: Alignment = Field(Alignment(), description="Alignment of hidden states.")
    optimizer: Optimizer = Field(Optimizer(), description="Optimizer.")
    ema: Ema = Field(Ema(), description="Average of the weights.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="Checkpoints.")
    logging: Logging = Field(Logging(), description="Logging.")
    guard: Guard = Field(Guard(), description="Bad batches, loss spikes, time limit.")
    evaluation: HeldOut = Field(
        HeldOut(), description="Held-out loss, and distances of samples, while training."
    )
    sampling: Sampling = Field(Sampling(), description="Sample grids.")
    watch: Watch = Field(Watch(), description="Watch over the ranks.")

    # Where each key was written, so that later checks can still say so.
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    # Values with ${...}, by their place, as written before they were resolved.
    _written: dict[tuple[Any, ...], str] = PrivateAttr(default_factory=dict)

    def source_of(self, key: str) -> str:
        """File and line, or ``command line``, that set `key` or its section; empty when unknown."""
        return source_of(self._sources, key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()


def source_of(sources: Mapping[str, str], key: str) -> str:
    """The source of `key`, else that of the nearest section above it; ``""`` names the whole
    file.
    """
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources.get(key, "")
