# SPDX-License-Identifier: Apache-2.0
"""What is replaced in torch is what we know; what is installed and locked is what is tested."""

from __future__ import annotations

import inspect
import re
import typing
from importlib import metadata

import pytest
import torch
from job import ROOT
from packaging.requirements import Requirement
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as param_group

from ahpa_scale.torch_version import DEFAULT, NEW

LOCKS = {"default": DEFAULT, "new": NEW}


def test_the_installed_torch_is_a_tested_one():
    version = metadata.version("torch")
    assert any(Requirement(tested).specifier.contains(version) for tested in (DEFAULT, NEW))
    assert torch.__version__.startswith(version)


@pytest.mark.skipif(
    hasattr(FSDPModule, "set_force_sum_reduction_for_comms"),
    reason="this torch has a method for it, and nothing is replaced",
)
def test_what_is_replaced_in_torch_2_7_has_the_shape_that_we_know():
    function = inspect.unwrap(collectives._get_gradient_divide_factors)
    assert list(inspect.signature(function).parameters) == [
        *("reduce_scatter_group", "all_reduce_group", "reduce_dtype", "device_type")
    ]
    reduced = inspect.signature(inspect.unwrap(param_group.foreach_reduce)).return_annotation
    assert str(reduced).count("Event") == 3
    assert len(typing.get_args(reduced)) == 6


@pytest.mark.parametrize(("lock", "tested"), LOCKS.items())
def test_the_locks_hold_what_is_tested(lock, tested):
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    (version,) = re.findall(r"^torch==(\S+)", text, re.MULTILINE)
    assert Requirement(tested).specifier.contains(version)


def test_the_package_asks_for_the_default_and_the_overrides_for_the_new_one():
    assert f'    "{DEFAULT}",\n' in (ROOT / "pyproject.toml").read_text()
    assert NEW in (ROOT / "requirements/new.txt").read_text().splitlines()
