# SPDX-License-Identifier: Apache-2.0
"""The parallelism section: what an engine can't do is said before anything starts, and what it is
told to do arrives at it.
"""

from __future__ import annotations

import pytest
import torch
from composer.devices import DeviceCPU

from ahpa_scale.algorithms import FullyShard, GradClip, ZeRO
from ahpa_scale.algorithms.zero import ZeroSettings
from ahpa_scale.run.engine import build_engine, composer_precision, cpu_bf16


@pytest.mark.parametrize(
    ("overrides", "world", "words"),
    [
        (["precision=bf16"], 1, ["precision: 'bf16' needs an engine that shards", "amp_bf16"]),
        (["parallelism.engine=hsdp"], 2, ["with one copy hsdp is fsdp2"]),
        (
            ["parallelism.engine=hsdp", "parallelism.replicate_degree=3"],
            8,
            ["3 copies can't share 8 processes", "the nearest that can is 2"],
        ),
        (["parallelism.replicate_degree=2"], 2, ["it belongs to parallelism.engine=hsdp"]),
        (["parallelism.reshard_after_forward=false"], 1, ["fsdp2 or hsdp"]),
        (["parallelism.offload=optimizer"], 1, ["zero1 or zero2 or zero3"]),
        (["parallelism.offload_folder=/x"], 1, ["zero1 or zero2 or zero3"]),
        (
            ["parallelism.engine=zero2", "parallelism.offload_folder=/x"],
            1,
            ["parallelism.offload is none"],
        ),
        (
            [
                "parallelism.engine=zero2",
                "parallelism.offload=optimizer",
                "parallelism.offload_folder=s3://x/y",
            ],
            1,
            ["s3://x/y is not on this machine's own disk: name a local path"],
        ),
        (
            ["parallelism.engine=zero2", "parallelism.offload=parameters"],
            1,
            ["needs parallelism.engine=zero3, not zero2", "'optimizer'"],
        ),
        (["parallelism.engine=zero3", "parallelism.compile=true"], 1, ["use fsdp2"]),
        (["parallelism.activation_checkpointing=99"], 1, ["99 lies beyond the 28 blocks"]),
        (
            ["parallelism.engine=fsdp2", "device_train_microbatch_size=auto"],
            1,
            ["'auto' needs parallelism.engine=ddp on a gpu"],
        ),
        (["device_train_microbatch_size=auto", "device=cpu"], 1, ["'auto' needs"]),
        (
            [
                "parallelism.engine=fsdp2",
                "alignment.kind=self",
                "alignment.groups={late: [self.20]}",
            ],
            1,
            ["self.<block>", "ddp"],
        ),
    ],
)
def test_what_an_engine_cannot_do(complaint, monkeypatch, overrides, world, words):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    said = complaint(*overrides)
    assert all(word in said for word in words), said


def test_hsdp_has_a_copy_per_node(load, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = load("parallelism.engine=hsdp", "parallelism.reshard_after_forward=false")
    shard, clip = build_engine(config, DeviceCPU())
    assert isinstance(shard, FullyShard)
    assert shard.replicate_degree == 2
    assert not shard.reshard_after_forward
    assert shard.param_dtype is None
    assert isinstance(clip, GradClip)
    assert clip.max_norm == config.optimizer.grad_clip


def test_fsdp2_sends_bfloat16_when_told(load):
    config = load("parallelism.engine=fsdp2", "precision=bf16", "optimizer.grad_clip=null")
    shard, clip = build_engine(config, DeviceCPU())
    assert shard.param_dtype == torch.bfloat16
    assert clip.max_norm is None
    assert cpu_bf16(config, DeviceCPU())
    assert composer_precision(config, DeviceCPU()) == "fp32"


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["parallelism.engine=zero1"], ZeroSettings(1, autocast=torch.bfloat16)),
        (["parallelism.engine=zero2", "precision=fp32"], ZeroSettings(2)),
        (
            ["parallelism.engine=zero1", "precision=amp_fp16", "device=gpu"],
            ZeroSettings(1, autocast=torch.float16),
        ),
        (
            ["parallelism.engine=zero3", "precision=bf16"],
            ZeroSettings(3, autocast=torch.bfloat16, low_precision_traffic=True),
        ),
        (
            ["parallelism.engine=zero2", "precision=amp_bf16", "parallelism.offload=optimizer"],
            ZeroSettings(2, offload="optimizer", autocast=torch.bfloat16),
        ),
        (
            [
                "parallelism.engine=zero3",
                "precision=fp32",
                "parallelism.offload=parameters",
            ],
            ZeroSettings(3, offload="parameters"),
        ),
    ],
)
def test_zero_is_told_what_the_section_says(load, overrides, settings):
    config = load(*overrides)
    (zero,) = build_engine(config, DeviceCPU())
    assert isinstance(zero, ZeRO)
    assert zero.settings == settings
    assert zero.max_norm == config.optimizer.grad_clip


def test_deepspeed_is_told_everything_that_would_change_a_result():
    told = ZeroSettings(3, 1000, "parameters", torch.bfloat16).deepspeed(None)
    assert told["gradient_clipping"] == 0.0
    assert told["gradient_accumulation_steps"] == 1
    assert told["managed_gradient_accumulation"] is False
    assert told["torch_autocast"]["lower_precision_safe_modules"] == []
    zero = told["zero_optimization"]
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    assert zero["stage3_prefetch_bucket_size"] == zero["reduce_bucket_size"] == 1000
    sends = ZeroSettings(2, autocast=torch.bfloat16, low_precision_traffic=True).deepspeed(2.0)
    assert "lower_precision_safe_modules" not in sends["torch_autocast"]
    assert sends["gradient_clipping"] == 2.0


@pytest.mark.parametrize(
    "settings",
    [
        {"stage": 0},
        {"bucket": 0},
        {"low_precision_traffic": True},
        {"autocast": torch.float64},
        {"stage": 2, "offload": "parameters"},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=r"stage|bucket|autocast"):
        ZeroSettings(**settings)
