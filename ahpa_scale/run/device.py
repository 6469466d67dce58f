# SPDX-License-Identifier: Apache-2.0
"""Checks the device key on this machine: one line, where torch or Composer give a traceback."""

from __future__ import annotations

import torch
from composer.devices import Device
from composer.utils import dist, get_device

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.schema import Config
from ahpa_scale.errors import HostError


def chosen_device(config: Config) -> Device:
    """The device of this process.

    Raises:
        HostError: the device is missing, there are fewer than ranks, or it lacks the precision.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_gpu = config.device == "gpu" or (config.device is None and gpus > 0)
    if config.device == "gpu" and not gpus:
        raise _error(config, "device", "torch finds no gpu here; set device=cpu, or null")
    if on_gpu and dist.get_local_rank() >= gpus:
        ranks = dist.get_local_world_size()
        raise _error(config, "device", f"{ranks} ranks, and torch finds {gpus} gpus here")
    if config.precision == "amp_fp16" and not on_gpu:
        problem = "'amp_fp16' needs a gpu, and torch finds none here; use amp_bf16 or fp32"
        raise _error(config, "precision", problem)
    return get_device(config.device)


def _error(config: Config, key: str, problem: str) -> HostError:
    return HostError(str(ConfigError(config.source_of(key), key, problem)))
