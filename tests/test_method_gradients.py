# SPDX-License-Identifier: Apache-2.0
"""Gradients at the taps: automatic lambda and agreement, against autograd's own numbers.

B batch, N tokens, D width, G groups.
"""

from __future__ import annotations

import pytest
import torch
from alignments import prior_alignment
from torch import Tensor, nn

from ahpa_scale.method import DynamicRouter, GradientBalance, PriorAlignment, UniformRouter

GROUPS = {"fine": ("a",), "coarse": ("b",)}
B, N, D = 6, 16, 8


class Net(nn.Module):
    """Two blocks and a flow loss behind them; taps as the DiT gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x_BND: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        one_BND = self.first(x_BND).tanh()
        two_BND = one_BND + self.second(one_BND).tanh()
        return {1: one_BND, 2: two_BND}, two_BND.pow(2).sum(-1).mean()


def data(seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        f"prior.{level}": torch.randn(B, channels, 4, 4, generator=generator)
        for level, channels in {"a": 5, "b": 3}.items()
    }
    return torch.randn(B, N, D, generator=generator), torch.rand(B, generator=generator), batch


def alignment(router: nn.Module | None = None, **settings: object) -> PriorAlignment:
    torch.manual_seed(0)
    chosen = {"taps": [1, 1], "head_width": 16, **settings}
    return prior_alignment(
        router or UniformRouter(2),
        width=D,
        grid=4,
        groups=GROUPS,
        channels={"fine": 5, "coarse": 3},
        **chosen,
    )


def norms(net: Net, module: PriorAlignment, taps: tuple[int, ...], scale: float = 1.0):
    """Root sums of squares of the flow's and the alignment's gradient at the taps, by autograd."""
    x_BND, t_B, batch = data()
    tapped, flow = net(x_BND)
    # Copies without a past: what reaches one tap through another does not count as its own.
    copies = {tap: h.detach().requires_grad_() for tap, h in tapped.items()}
    loss = module.eval()({tap: copies[tap] for tap in taps}, t_B, batch)
    module.train()
    own = torch.autograd.grad(loss * scale, [copies[tap] for tap in taps])
    flows = torch.autograd.grad(flow * scale, [tapped[tap] for tap in taps])
    return flows, own


def step(net: Net, module: PriorAlignment, scale: float = 1.0) -> Tensor:
    """One batch's backward pass; the gradient of the first layer's weight."""
    x_BND, t_B, batch = data()
    net.zero_grad()
    tapped, flow = net(x_BND)
    ((flow + module(tapped, t_B, batch)) * scale).backward()
    module.commit()
    assert net.first.weight.grad is not None
    return net.first.weight.grad.clone()


def total(gradients) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def test_the_balance_measures_both_norms_and_sets_the_next_batchs_share():
    net, module = Net(), alignment(gradient_ratio=0.3)
    flows, own = norms(net, module, (1,))
    wanted = 0.3 * total(flows) / total(own)
    plain = step(net, alignment())
    only_flow = (
        plain - step(net, alignment()) + torch.autograd.grad(net(data()[0])[1], net.first.weight)[0]
    )
    assert torch.equal(step(net, module), plain), "the first batch is not scaled"
    read = module.balance.read()
    assert read["factor"] == pytest.approx(wanted.item(), rel=1e-4)
    assert read["gradient_ratio"] == pytest.approx((total(own) / total(flows)).item(), rel=1e-4)
    # Weights stand still, so the second batch measures the same, before its scaling.
    scaled = step(net, module)
    # Small differences of large gradients carry their last bits, one side times `wanted`.
    last_bit = torch.finfo(torch.float32).eps * plain.abs().max().item()
    rounding = 2 * (1 + wanted.item()) * last_bit
    torch.testing.assert_close(
        scaled - only_flow, wanted * (plain - only_flow), rtol=1e-3, atol=rounding
    )
    assert module.balance.read()["factor"] == pytest.approx(wanted.item(), rel=1e-4)


def test_the_balance_changes_neither_the_value_nor_the_heads_gradients():
    (x_BND, t_B, batch), net = data(), Net()
    plain, balanced = alignment(), alignment(gradient_ratio=5.0)
    step(net, balanced)
    balanced.zero_grad()
    for module in (plain, balanced):
        module(net(x_BND)[0], t_B, batch).backward()
    assert torch.equal(plain(net(x_BND)[0], t_B, batch), balanced(net(x_BND)[0], t_B, batch))
    for one, other in zip(plain.heads.parameters(), balanced.heads.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_loss_scale_cancels_and_an_overflow_is_left_out():
    net, module, scaled = Net(), alignment(gradient_ratio=0.3), alignment(gradient_ratio=0.3)
    step(net, module)
    step(net, scaled, scale=65536.0)
    torch.testing.assert_close(module.balance.log_ratio, scaled.balance.log_ratio)
    before = scaled.balance.log_ratio.clone()
    step(net, scaled, scale=float("inf"))
    assert torch.equal(scaled.balance.log_ratio, before)
    assert scaled.balance.seen == 1


def test_the_ratio_is_right_under_autocast():
    net, module, exact = Net(), alignment(gradient_ratio=0.3), alignment(gradient_ratio=0.3)
    step(net, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_BND, t_B, batch = data()
        tapped, flow = net(x_BND)
        loss = flow.float() + module(tapped, t_B, batch)
    loss.backward()
    module.commit()
    assert module.balance.read()["factor"] == pytest.approx(
        exact.balance.read()["factor"], rel=0.03
    )


def test_several_taps_add_up_their_squares():
    net, module = Net(), alignment(gradient_ratio=0.3, taps=[1, 2])
    flows, own = norms(net, module, (1, 2))
    tapped, _ = net(data()[0])
    # What the deeper tap's alignment sends down to the shallower one counts as flow there.
    (sent,) = torch.autograd.grad(tapped[2], tapped[1], grad_outputs=own[1])
    step(net, module)
    expected = total([flows[0] + sent, flows[1]]) / total(own)
    torch.testing.assert_close(module.balance.log_ratio.exp(), expected, rtol=1e-4, atol=0)


def test_micro_batches_add_up_and_a_held_balance_learns_nothing():
    flow_BND, own_BND = torch.randn(4, N, D), torch.randn(4, N, D)
    whole, parts = GradientBalance(1.0), GradientBalance(1.0)
    whole.observe(flow_BND, own_BND, torch.ones(()))
    for half in (slice(0, 2), slice(2, 4)):
        parts.observe(flow_BND[half], own_BND[half] * 7, torch.full((), 7.0))
    whole.commit()
    parts.commit()
    torch.testing.assert_close(whole.log_ratio, parts.log_ratio)
    parts.hold = True
    parts.observe(flow_BND * 100, own_BND, torch.ones(()))
    parts.commit()
    torch.testing.assert_close(whole.log_ratio, parts.log_ratio)


@pytest.mark.parametrize(("ratio", "factor"), [(1e9, 1e3), (1e-9, 1e-3), (0.5, 0.5)])
def test_the_factor_stays_in_its_bounds(ratio: float, factor: float):
    balance = GradientBalance(ratio)
    assert balance.read() == {}
    assert balance.factor() == 1
    balance.observe(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(()))
    balance.commit()
    assert balance.factor().item() == pytest.approx(factor)


def test_evaluation_measures_no_gradients():
    net, module = Net(), alignment(gradient_ratio=0.3).eval()
    step(net, module)
    assert module.balance.read() == {}


@pytest.mark.parametrize("taps", [[1, 1], [1, 2]])
def test_agreement_is_the_cosine_between_each_groups_gradient_and_the_flows(taps: list[int]):
    net = Net()
    module = alignment(DynamicRouter(2), objective="agreement", taps=taps, bins=1)
    x_BND, t_B, batch = data()
    tapped, flow = net(x_BND)
    own = []
    for group, tap in enumerate(taps):
        weight_G = torch.eye(2)[group]
        copy_BND = tapped[tap].detach().requires_grad_()
        y_BNC = module.targets(batch)[group]
        loss_B = module._loss(module.heads[group](copy_BND), y_BNC)
        own.append(torch.autograd.grad((weight_G[group] * loss_B).sum(), copy_BND)[0])
    step(net, module)
    for group, tap in enumerate(taps):
        (flow_BND,) = torch.autograd.grad(flow, tapped[tap], retain_graph=True)
        if taps == [1, 2] and tap == 1:
            sent = torch.autograd.grad(tapped[2], tapped[1], own[1] / (2 * B), retain_graph=True)
            flow_BND = flow_BND + sent[0]
        cosine_B = torch.cosine_similarity(own[group].flatten(1), flow_BND.flatten(1))
        torch.testing.assert_close(
            module.router_target.cosines.mean_GT[group, 0], cosine_B.mean(), rtol=1e-3, atol=1e-5
        )
    weight_BG = module.router_target(t_B)
    expected_G = (module.router_target.cosines.mean_GT[:, 0] / 0.1).softmax(0)
    torch.testing.assert_close(weight_BG, expected_G.expand(B, 2))


def test_agreement_leaves_the_gradients_alone():
    net = Net()
    router = DynamicRouter(2).requires_grad_(False)
    watched = step(net, alignment(router, objective="agreement"))
    torch.testing.assert_close(
        watched, step(net, alignment(DynamicRouter(2).requires_grad_(False)))
    )
