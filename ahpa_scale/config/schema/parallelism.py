# SPDX-License-Identifier: Apache-2.0
"""How the model is spread over devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ahpa_scale.config.schema.fields import LocalPath, Section

ENGINES = ("ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3")
SHARDED_BY_TORCH = ("fsdp2", "hsdp")
SHARDED_BY_ZERO = ("zero1", "zero2", "zero3")


class Parallelism(Section):
    """Engine, and what it trades for what."""

    engine: Literal["ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"] = Field(
        "ddp",
        description="ddp: a whole copy on every device; fsdp2: everything sharded over all "
        "devices; hsdp: sharded inside a node, copied across nodes; zero1, zero2, zero3: "
        "DeepSpeed, sharding the optimizer, gradients as well, weights as well.",
    )
    replicate_degree: int | None = Field(
        None, ge=1, description="hsdp: copies of the sharded model; null: one per node."
    )
    reshard_after_forward: bool = Field(
        True,
        description="fsdp2, hsdp: free a block's gathered weights between forward and backward "
        "pass; false trades memory for less traffic.",
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="zero: keep the optimizer's shards, with zero3 also the weights', in the "
        "host's memory.",
    )
    offload_folder: LocalPath | None = Field(
        None,
        description="With offload: keep it in files of this folder, on a local NVMe disk, mapped "
        "into memory; null: in the host's memory alone.",
    )
    activation_checkpointing: int | None = Field(
        None,
        ge=1,
        description="Recompute the insides of every n-th block in the backward pass instead of "
        "keeping them: 1 for all blocks; null: none.",
    )
    compile: bool = Field(
        False,
        description="Compile each block of the backbone at the first step; names in checkpoints "
        "stay the same.",
    )
