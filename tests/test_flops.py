# SPDX-License-Identifier: Apache-2.0
"""What a picture costs a DiT, against the closed form and the paper."""

from __future__ import annotations

import pytest
import torch

from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.flops import forward_flops, training_flops


@pytest.mark.parametrize("name", ["tiny/2", "S/2", "B/4", "L/2", "XL/2"])
def test_flops_are_those_of_the_closed_form(name):
    with torch.device("meta"):
        dit = build_dit(name, input_size=32)
    n, d, p2c = dit.grid**2, dit.width, dit.patch_size**2 * dit.in_channels
    # Queries, keys, values; attention twice; its projection; the MLP of 4 widths; modulation.
    block = 2 * n * d * 3 * d + 2 * 2 * n * n * d + 2 * n * d * d + 2 * 2 * n * d * 4 * d
    block += 2 * d * 6 * d
    ends = 2 * n * p2c * d + 2 * n * d * p2c + 2 * d * 2 * d
    times = 2 * (256 * d + d * d)
    assert forward_flops(dit) == dit.depth * block + ends + times
    assert training_flops(dit) == 3 * forward_flops(dit)


def test_flops_of_xl_are_those_of_its_paper():
    """Table 4 of arXiv 2212.09748 counts multiply-adds: 118.6 G."""
    with torch.device("meta"):
        dit = build_dit("XL/2", input_size=32)
    assert forward_flops(dit) / 2 == pytest.approx(118.6e9, rel=1e-3)


def test_counting_flops_leaves_the_model_as_it_is():
    dit = build_dit("tiny/2", input_size=8, depth=2)
    before = {name: one.clone() for name, one in dit.state_dict().items()}
    assert forward_flops(dit) > 0
    for name, one in dit.state_dict().items():
        assert one.device.type == "cpu"
        assert torch.equal(one, before[name])
