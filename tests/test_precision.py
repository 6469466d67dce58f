# SPDX-License-Identifier: Apache-2.0
"""In which arithmetic a CPU judges and trains."""

from __future__ import annotations

import pytest
import torch
from composer.devices import DeviceCPU

from ahpa_scale import precision
from ahpa_scale.data.demo import DemoSpec
from ahpa_scale.precision import cpu_has_bf16, inference_autocast, same_on_every_cpu
from ahpa_scale.run import engine
from ahpa_scale.run.engine import cpu_bf16
from experiments.judges import train_classifier
from experiments.judges.factor_judge import render_many, train_factor_judge

CPU = torch.device("cpu")
TRAINED = ("judge", "teacher")


def product() -> torch.Tensor:
    return torch.ones(2, 2) @ torch.ones(2, 2)


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def native(request, monkeypatch) -> bool:
    for module in (precision, engine):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: request.param)
    return request.param


def test_the_processor_is_asked_once():
    assert cpu_has_bf16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_judging_uses_bfloat16_only_where_the_processor_has_it(native):
    with inference_autocast(CPU):
        assert product().dtype == (torch.bfloat16 if native else torch.float32)
    assert product().dtype == torch.float32


def test_judging_can_be_the_same_everywhere(native):
    with same_on_every_cpu(), inference_autocast(CPU):
        assert product().dtype == torch.float32
    with inference_autocast(CPU):
        assert (product().dtype == torch.bfloat16) == native


def test_judges_come_out_alike_whether_or_not_the_processor_has_bfloat16(monkeypatch):
    spec = DemoSpec(size=16, num_classes=4)
    drawn = render_many(spec, 0, 32)
    images, labels = drawn.images_N3SS.permute(0, 2, 3, 1).numpy(), drawn.labels_N.numpy()
    states = []
    for native in (True, False):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda native=native: native)
        given = {"steps": 2, "batch_size": 16, "seed": 0}
        judges = [train_classifier(images, labels, 4, arch=arch, **given) for arch in TRAINED]
        judges.append(train_factor_judge(spec, drawn, progress=False, **given))
        states.append([judge.state_dict() for judge in judges])
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_device_keeps_the_callers_autocast():
    assert not inference_autocast(torch.device("cuda"))._enabled


def test_training_in_imitated_bfloat16_is_warned_of_by_one_rank(native, load, capsys, monkeypatch):
    assert cpu_bf16(load("precision=amp_bf16"), DeviceCPU())
    warned = "precision=fp32 is faster here" in capsys.readouterr().err
    assert warned != native
    assert not cpu_bf16(load("precision=fp32"), DeviceCPU())
    monkeypatch.setenv("RANK", "1")
    assert cpu_bf16(load("precision=amp_bf16"), DeviceCPU())
    assert capsys.readouterr().err == ""
