# SPDX-License-Identifier: Apache-2.0
"""Whether an engine can do what the rest of the run asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.parallelism import SHARDED_BY_TORCH, SHARDED_BY_ZERO
from ahpa_scale.config.targets import named_sources

#: A key without effect, the key that makes it idle, and the reason.
Idle = tuple[str, str, str]


def world_size() -> int:
    """Number of processes that the launcher has announced.

    Raises:
        ConfigError: it announced no whole number of at least 1.
    """
    return _announced("WORLD_SIZE", 1)


def replicate_degree(config: Config) -> int:
    """Copies of the sharded model under ``hsdp``: as asked for, or one per node."""
    chosen = config.parallelism.replicate_degree
    if chosen is not None:
        return chosen
    return max(1, world_size() // _announced("LOCAL_WORLD_SIZE", world_size()))


def check_engine(config: Config, depth: int) -> None:
    """Checks the engine against precision, levels, depth and number of processes.

    Raises:
        ConfigError: the first thing that the engine can't do.
    """
    for key, problem in _problems(config, depth):
        raise ConfigError(config.source_of(key), key, problem)


def idle_keys(config: Config) -> Iterator[Idle]:
    """Keys of the section that its engine does not use."""
    chosen = config.parallelism
    owners = {
        "replicate_degree": ("hsdp",),
        "reshard_after_forward": SHARDED_BY_TORCH,
        "offload": SHARDED_BY_ZERO,
        "offload_folder": SHARDED_BY_ZERO,
    }
    for name, engines in owners.items():
        if chosen.engine not in engines:
            why = f"it belongs to parallelism.engine={' or '.join(engines)}"
            yield f"parallelism.{name}", "parallelism.engine", why
    if chosen.engine in SHARDED_BY_ZERO and chosen.offload == "none":
        yield "parallelism.offload_folder", "parallelism.offload", "parallelism.offload is none"


def _problems(config: Config, depth: int) -> Iterator[tuple[str, str]]:
    """Key and what is wrong with it."""
    chosen = config.parallelism
    engine = chosen.engine
    if engine == "hsdp":
        yield from _copies(config)
    if config.precision == "bf16" and engine == "ddp":
        yield "precision", "'bf16' needs an engine that shards, such as fsdp2; ddp has 'amp_bf16'"
    if config.device_train_microbatch_size == "auto" and (
        engine != "ddp" or config.device == "cpu"
    ):
        yield (
            "device_train_microbatch_size",
            "'auto' needs parallelism.engine=ddp on a gpu; write a number of samples",
        )
    if chosen.offload == "parameters" and engine != "zero3":
        yield (
            "parallelism.offload",
            f"'parameters' needs parallelism.engine=zero3, not {engine}; choose 'optimizer'",
        )
    for source in named_sources(config.alignment):
        if engine != "ddp" and source.averaged:
            yield (
                "parallelism.engine",
                f"levels {source.name}.<{source.unit}> need whole averages, and {engine} shards "
                "them; use ddp, or align other levels",
            )
    if chosen.compile and engine == "zero3":
        yield (
            "parallelism.compile",
            "zero3 gathers weights inside a block, which is compiled anew each time; use fsdp2",
        )
    every = chosen.activation_checkpointing
    if every is not None and every > depth:
        yield "parallelism.activation_checkpointing", f"{every} lies beyond the {depth} blocks"


def _copies(config: Config) -> Iterator[tuple[str, str]]:
    world, copies = world_size(), replicate_degree(config)
    if copies == 1 and world > 1:
        yield (
            "parallelism.replicate_degree",
            "with one copy hsdp is fsdp2: choose that engine, or more copies",
        )
    elif world % copies:
        near = min(
            (n for n in range(2, world + 1) if world % n == 0),
            key=lambda n: abs(n - copies),
            default=1,
        )
        yield (
            "parallelism.replicate_degree",
            f"{copies} copies can't share {world} processes evenly; the nearest that can is {near}",
        )


def _announced(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("environment", name, f"{text!r} is not a number of processes")
    return int(text)
