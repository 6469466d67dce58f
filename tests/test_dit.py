# SPDX-License-Identifier: Apache-2.0
"""The transformer against numbers of the official SiT; its initialisation, taps and modes."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ahpa_scale.models import build_dit, official_sit_velocity
from ahpa_scale.models.randomness import normal, sample_key

REFERENCE = Path(__file__).parent / "fixtures" / "sit_reference.safetensors"
ODD = {"depth": 3, "width": 96, "heads": 4, "in_channels": 3, "num_classes": 10}


def build_case(case: str) -> nn.Module:
    if case == "s2":
        return build_dit("S/2", input_size=32, learn_sigma=True)
    return build_dit("S/4", input_size=16, **ODD)


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule of fixtures/sit_reference.md."""
    index = torch.tensor([zlib.crc32(name.encode())])
    return normal(sample_key(0, 0, index, "sit reference"), tuple(shape))[0]


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * draw(name, parameter.shape))
    return model.eval()


def reference_inputs(case: str, model: nn.Module) -> tuple[torch.Tensor, ...]:
    name = "input S/2" if case == "s2" else "input odd"
    x_BCHW = draw(name, (3, model.in_channels, model.input_size, model.input_size))
    y_B = torch.tensor([0, model.num_classes, 417 if case == "s2" else 7])
    return x_BCHW, torch.tensor([0.0, 0.37, 1.0]), y_B


@pytest.fixture(scope="module", params=["s2", "odd"])
def case(request):
    return request.param, fill(build_case(request.param))


def small(**options) -> nn.Module:
    settings = {"depth": 2, "width": 32, "heads": 2, "in_channels": 4, "num_classes": 5}
    return build_dit("tiny/2", input_size=8, **{**settings, **options})


def inputs(batch: int = 3) -> tuple[torch.Tensor, ...]:
    x_BCHW = draw("x", (batch, 4, 8, 8))
    return x_BCHW, torch.linspace(0.1, 0.9, batch), torch.arange(batch) % 5


def test_output_matches_the_official_sit(case):
    name, model = case
    with safe_open(REFERENCE, "pt") as file:
        expected = file.get_tensor(f"{name}.velocity")
    with torch.no_grad():
        velocity = model(*reference_inputs(name, model))
    assert expected.std() > 0.5
    assert (velocity - expected).abs().max() <= 1e-5


def test_state_dict_names_and_shapes_are_the_official_ones(case):
    name, model = case
    with safe_open(REFERENCE, "pt") as file:
        expected = json.loads(file.metadata()[f"{name}.state"])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected


def test_position_table_is_the_official_one(case):
    name, model = case
    with safe_open(REFERENCE, "pt") as file:
        expected = file.get_tensor(f"{name}.pos_embed")
    rows = model.pos_embed[0, :: 17 if name == "s2" else 1]
    torch.testing.assert_close(rows, expected, atol=1.2e-7, rtol=0)
    assert not model.pos_embed.requires_grad


def test_initialisation_has_the_official_statistics():
    torch.manual_seed(0)
    model = build_dit("tiny/2", input_size=16)
    width = model.width
    for block in model.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert_xavier(layer.weight, *layer.weight.shape)
        assert not block.adaLN_modulation[1].weight.any()
    assert_xavier(model.x_embedder.proj.weight, width, 4 * 2 * 2)
    for layer in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    table = model.y_embedder.embedding_table.weight
    assert table.shape == (1001, width)
    assert table.std().item() == pytest.approx(0.02, rel=0.02)
    final = model.final_layer
    assert not final.linear.weight.any()
    assert not final.adaLN_modulation[1].weight.any()
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 5 * model.depth + 5
    assert not any(bias.any() for bias in biases)


def assert_xavier(weight: torch.Tensor, fan_out: int, fan_in: int) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_a_new_model_predicts_zero():
    assert not small()(*inputs()).any()


def test_taps_are_the_tokens_after_the_blocks_counted_from_one():
    model = fill(small(depth=3))
    captured = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _m, _i, out, n=number: captured.update({n: out}))
    velocity, tapped = model(*inputs(), taps=[3, 1])
    assert sorted(tapped) == [1, 3]
    for number, h_BND in tapped.items():
        assert h_BND.shape == (3, model.grid**2, model.width)
        assert torch.equal(h_BND, captured[number])
    assert torch.equal(velocity, model(*inputs()))


@pytest.mark.parametrize(("tap", "nearest"), [(0, 1), (-1, 1), (4, 3)])
def test_a_tap_outside_the_blocks_is_refused(tap, nearest):
    with pytest.raises(ValueError, match=rf"tap {tap} is outside 1..3 .*nearest is {nearest}"):
        small(depth=3)(*inputs(), taps=[tap])


def test_wrong_input_size_is_refused():
    x_BCHW, t_B, y_B = inputs()
    with pytest.raises(ValueError, match=r"must be \[B, 4, 8, 8\], got \[3, 4, 4, 8\]"):
        small()(x_BCHW[:, :, :4], t_B, y_B)


# Published sizes in millions of parameters: SiT, table 1 (S 33, B 130, L 458, XL 675).
@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_official_sizes_on_the_meta_device(size, millions):
    with torch.device("meta"):
        model = build_dit(f"{size}/2", input_size=32, learn_sigma=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    x_BCHW = torch.empty(2, 4, 32, 32, device="meta")
    velocity, tapped = model(
        x_BCHW,
        torch.empty(2, device="meta"),
        torch.empty(2, dtype=torch.int64, device="meta"),
        taps=[1],
    )
    assert velocity.shape == x_BCHW.shape
    assert tapped[1].shape == (2, 256, model.width)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_leaving_the_meta_device_gives_the_same_model(qk_norm):
    model = small(qk_norm=qk_norm)
    with torch.device("meta"):
        other = small(qk_norm=qk_norm)
    other.to_empty(device="cpu")
    for each in (model, other):
        torch.manual_seed(3)
        each.initialize_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_qk_norm_normalises_queries_and_keys_under_timms_names():
    model = fill(small(qk_norm=True))
    names = set(model.state_dict()) - set(small().state_dict())
    assert {name.split(".attn.")[1] for name in names if name.startswith("blocks.0")} == {
        "q_norm.weight",
        "q_norm.bias",
        "k_norm.weight",
        "k_norm.bias",
    }
    with torch.no_grad():
        before = model(*inputs())
        for block in model.blocks:
            block.attn.qkv.weight[:64] *= 50
            block.attn.qkv.bias[:64] *= 50
        torch.testing.assert_close(model(*inputs()), before, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_bias_of_keys_is_trained_only_where_it_counts(qk_norm):
    model = fill(small(qk_norm=qk_norm))
    exact = model(*inputs())
    with torch.no_grad():
        assert torch.equal(model(*inputs()), exact)
    exact.square().mean().backward()
    query, key, value = model.blocks[0].attn.qkv.bias.grad.chunk(3)
    assert query.abs().min() > 0
    assert value.abs().min() > 0
    assert bool(key.any()) == qk_norm
    # What is held is without effect: another bias of the keys, the same velocity.
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[32:64] += torch.linspace(-3, 3, 32)
        assert torch.allclose(model(*inputs()), exact, atol=1e-5) != qk_norm


@pytest.mark.parametrize("qk_norm", [False, True])
def test_bfloat16_autocast_and_weights_stay_close_to_float32(qk_norm):
    model = fill(small(qk_norm=qk_norm))
    exact = model(*inputs()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, tapped = model(*inputs(), taps=[2])
    mixed.float().square().mean().backward()
    assert tapped[2].dtype == torch.float32
    assert torch.isfinite(model.x_embedder.proj.weight.grad).all()
    x_BCHW, t_B, y_B = inputs()
    with torch.no_grad():
        low = model.to(torch.bfloat16)(x_BCHW.bfloat16(), t_B, y_B)
    for rounded in (mixed.detach(), low):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_gradients_reach_every_parameter_and_samples_do_not_mix():
    model = fill(small())
    x_BCHW, t_B, y_B = inputs()
    x_BCHW.requires_grad_()
    model(x_BCHW, t_B, y_B)[0].square().sum().backward()
    assert x_BCHW.grad[0].abs().sum() > 0
    assert not x_BCHW.grad[1:].any()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_without_label_dropout_there_is_no_null_class():
    assert small().null_label == 5
    plain = small(class_dropout_prob=0.0)
    assert plain.null_label is None
    assert plain.y_embedder.embedding_table.weight.shape[0] == 5


def test_traces_whole_with_taps():
    model = fill(small())
    velocity, tapped = model(*inputs(), taps=[1])
    # fullgraph refuses graph breaks; the eager backend spares the test a C++ compiler.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    again, tapped_again = compiled(*inputs(), taps=[1])
    torch.testing.assert_close(again, velocity)
    torch.testing.assert_close(tapped_again[1], tapped[1])


def test_official_time_is_reversed_and_the_velocity_negated():
    model = fill(small())
    x_BCHW, t_B, y_B = inputs()
    wrapped = official_sit_velocity(model)
    torch.testing.assert_close(wrapped(x_BCHW, t_B, y_B), -model(x_BCHW, 1 - t_B, y_B))
    assert wrapped.null_label == model.null_label


def test_official_velocity_field_moves_noise_to_data_in_our_time():
    class OfficialField(nn.Module):
        """Exact velocity towards one picture in SiT's time: x_s = s data + (1 - s) noise."""

        in_channels, input_size, num_classes, null_label = 1, 2, 1, None

        def forward(self, x, s, y):
            return (2.0 - x) / (1 - s)[:, None, None, None]

    x_BCHW = draw("x", (2, 1, 2, 2))
    velocity = official_sit_velocity(OfficialField())
    # In our time x_t = (1 - t) 2 + t eps, whose velocity eps - 2 equals (x_t - 2) / t.
    t_B = torch.tensor([0.5, 0.8])
    expected = (x_BCHW - 2.0) / t_B[:, None, None, None]
    torch.testing.assert_close(velocity(x_BCHW, t_B, torch.zeros(2)), expected)
