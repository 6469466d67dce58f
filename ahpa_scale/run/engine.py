# SPDX-License-Identifier: Apache-2.0
"""The parallelism section -> the engine's plug-ins, and compiled blocks."""

from __future__ import annotations

import logging
import os
import shutil

import torch
from composer.core import Algorithm
from composer.devices import Device, DeviceCPU

from ahpa_scale import console
from ahpa_scale.algorithms.engine import engine_algorithms
from ahpa_scale.config.checks.engine import replicate_degree
from ahpa_scale.config.errors import ConfigError, speaks_for_all_ranks
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.parallelism import SHARDED_BY_TORCH, SHARDED_BY_ZERO
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.precision import cpu_has_bf16


def build_engine(config: Config, device: Device) -> list[Algorithm]:
    """Builds the plug-ins of the engine, including gradient clipping."""
    chosen = config.parallelism
    options: dict[str, object] = {}
    if chosen.engine in SHARDED_BY_TORCH:
        options["reshard_after_forward"] = chosen.reshard_after_forward
        options["param_dtype"] = torch.bfloat16 if config.precision == "bf16" else None
    elif chosen.engine in SHARDED_BY_ZERO:
        options["offload"] = None if chosen.offload == "none" else chosen.offload
        options["offload_folder"] = chosen.offload_folder
        options["autocast"] = autocast(config)
        options["low_precision_traffic"] = config.precision == "bf16"
    return engine_algorithms(
        chosen.engine,
        max_norm=config.optimizer.grad_clip,
        log_interval=config.logging.interval,
        replicate_degree=replicate_degree(config),
        **options,
    )


def compile_blocks(config: Config, generator: DiffusionGenerator, device: Device) -> None:
    """Compiles block by block and in place: equal blocks share one compilation, and parameters keep
    their names. The compilation itself runs in the first step.

    Raises:
        ConfigError: compiling on the CPU needs a C++ compiler, and there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if isinstance(device, DeviceCPU) and shutil.which(compiler) is None:
        key = "parallelism.compile"
        problem = f"needs a C++ compiler on the cpu, and there is no {compiler}; set it to false"
        raise ConfigError(config.source_of(key), key, problem)
    for block in generator.dit.blocks:
        block.compile()


def composer_precision(config: Config, device: Device) -> str:
    """The precision for the Trainer. It supports no bfloat16 on the CPU, where the generator opens
    the autocast. DeepSpeed opens its own too.
    """
    zero = config.parallelism.engine in SHARDED_BY_ZERO
    if zero or isinstance(device, DeviceCPU):
        return "fp32"
    return "amp_bf16" if config.precision == "bf16" else config.precision


def cpu_bf16(config: Config, device: Device) -> bool:
    """Whether the generator opens a bfloat16 autocast itself, on the CPU."""
    wanted = isinstance(device, DeviceCPU) and config.precision in ("amp_bf16", "bf16")
    if wanted and not cpu_has_bf16() and speaks_for_all_ranks():
        console.say(
            f"precision={config.precision}: this processor only imitates bfloat16, many times as "
            "slowly as float32; precision=fp32 is faster here",
            level=logging.WARNING,
        )
    return wanted


def autocast(config: Config) -> torch.dtype | None:
    """The dtype of matrix products under DeepSpeed; None for float32."""
    types = {"amp_bf16": torch.bfloat16, "bf16": torch.bfloat16, "amp_fp16": torch.float16}
    return types.get(config.precision)
