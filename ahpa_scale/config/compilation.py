# SPDX-License-Identifier: Apache-2.0
"""parallelism.compile: the backbone's blocks through torch.compile."""

from __future__ import annotations

import os
import shutil

from composer.devices import Device, DeviceCPU

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config
from ahpa_scale.models.generator import DiffusionGenerator


def compile_blocks(config: Config, generator: DiffusionGenerator, device: Device) -> None:
    """Compile block by block and in place: equal blocks share one compilation, and the model keeps
    its parameters' names. The work itself is done in the first step.

    Raises:
        ConfigError: the CPU's code generator has no compiler to call.
    """
    compiler = os.environ.get("CXX", "g++")
    if isinstance(device, DeviceCPU) and shutil.which(compiler) is None:
        key = "parallelism.compile"
        problem = f"needs a C++ compiler on the cpu, and there is no {compiler}; set it to false"
        raise ConfigError(config.source_of(key), key, problem)
    for block in generator.dit.blocks:
        block.compile()
