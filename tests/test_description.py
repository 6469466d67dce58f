# SPDX-License-Identifier: Apache-2.0
"""What an exported file tells about its model, as JSON that may come from anybody."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from ahpa_scale.errors import UserError
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.models.vae_config import LatentScaling

DESCRIBED = ModelDescription(
    depth=2,
    width=64,
    heads=4,
    patch_size=2,
    input_size=8,
    in_channels=4,
    num_classes=2,
    path="gvp",
    convention="sit",
    classes=("a cat", "ein Hünd"),
    scaling=LatentScaling("channel", (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)),
    vae="demo",
    vae_identity="0123456789abcdef",
    batch=7,
    kind="model",
    run_name="r",
)


def test_it_is_read_as_it_was_written():
    assert ModelDescription.from_json(DESCRIBED.to_json(), "x") == DESCRIBED
    bare = replace(DESCRIBED, scaling=None, classes=(), batch=None)
    assert ModelDescription.from_json(bare.to_json(), "x") == bare
    assert (DESCRIBED.class_name(1), bare.class_name(1)) == ("ein Hünd", "1")
    assert DESCRIBED.geometry().grid == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": 10**9}, "depth: .*less than or equal to 1000"),
        ({"width": 66}, "width 66 is not a multiple of heads 4"),
        ({"patch_size": 3}, "input size 8 is not a multiple of patch size 3"),
        ({"num_classes": 3}, "3 classes, but 2 names"),
        ({"in_channels": 3}, "3 channels, but a scaling of 4"),
        ({"convention": "other"}, "convention: "),
        ({"path": "rectified"}, "path: "),
        ({"width": "64"}, "width: "),
        ({"more": 1}, "more: "),
        ({"format": 2}, "not of format 1"),
        ({"scaling": {"kind": "config", "shift": [0.0], "scale": [0.0]}}, "scale must be above 0"),
    ],
)
def test_damage_is_one_line(change, said):
    text = json.dumps({**json.loads(DESCRIBED.to_json()), **change})
    with pytest.raises(UserError, match=said) as caught:
        ModelDescription.from_json(text, "w.safetensors")
    assert "w.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10**5, '{"format": 1}'])
def test_what_is_no_description_is_one_line(text):
    with pytest.raises(UserError, match="the model's description in w"):
        ModelDescription.from_json(text, "w")


def test_a_configuration_can_read_it_without_torch():
    code = "import sys, ahpa_scale.models.description; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
