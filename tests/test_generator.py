# SPDX-License-Identifier: Apache-2.0
"""The generator and its seam. Legend as in conftest."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from ahpa_scale.models.flow import get_path, interpolate


class Probe(nn.Module):
    """An auxiliary that remembers what it was called with."""

    levels = ("encoder.mid_block", "latent")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple] = []

    def forward(self, tapped, t_B, batch):
        self.calls.append((tapped, t_B, dict(batch)))
        return self.scale * sum(h_BND.float().square().mean() for h_BND in tapped.values())


def test_the_loss_is_that_of_the_velocity(make_generator, toy_batch):
    generator = make_generator(label_dropout=0.0)
    nn.init.normal_(generator.dit.final_layer.linear.weight, std=0.1)
    outputs = generator(toy_batch)
    loss = generator.loss(outputs, toy_batch)
    expected = (outputs["velocity"].float() - outputs["target"]).square().mean()
    torch.testing.assert_close(loss["flow"], expected)
    assert loss["total"] is loss["flow"]
    assert set(loss) == {"total", "flow"}


def test_randomness_belongs_to_the_sample_and_not_to_its_place_in_the_batch(
    make_generator, toy_batch
):
    generator = make_generator()
    order = torch.randperm(8)
    whole = generator(toy_batch)
    part = generator({name: value[order][:3] for name, value in toy_batch.items()})
    assert torch.equal(whole["t"][order][:3], part["t"])
    assert torch.equal(whole["target"][order][:3], part["target"])
    torch.testing.assert_close(whole["velocity"][order][:3], part["velocity"])


def test_another_epoch_or_seed_draws_other_noise(make_generator, toy_batch):
    first = make_generator()(toy_batch)
    assert torch.equal(first["t"], make_generator()(toy_batch)["t"])
    later = {**toy_batch, "epoch": toy_batch["epoch"] + 1}
    assert not torch.equal(first["t"], make_generator()(later)["t"])
    reseeded = make_generator()
    reseeded.seed = 1
    assert not torch.equal(first["t"], reseeded(toy_batch)["t"])


def test_noise_posterior_and_time_come_from_separate_streams(make_generator, toy_batch):
    """The target's noise must not be the posterior's: v = eps - x would then leak the sample's
    own noise.
    """
    generator = make_generator()
    batch = {
        **toy_batch,
        "moments": torch.cat([torch.zeros(8, 4, 8, 8), torch.ones(8, 4, 8, 8)], 1),
    }
    outputs = generator(batch)
    # With mean 0 and deviation 1, x is the posterior's noise, so v = eps - x has variance 2 only if
    # they are independent.
    assert outputs["target"].var().item() == pytest.approx(2.0, rel=0.1)


def test_labels_are_dropped_at_the_stated_rate(make_generator, toy_batch):
    generator = make_generator(label_dropout=0.3)
    big = {
        "index": torch.arange(4000),
        "epoch": torch.zeros(4000).long(),
        "label": torch.zeros(4000).long(),
    }
    dropped_B = generator._drop_labels(big) == generator.dit.num_classes
    assert dropped_B.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (make_generator(label_dropout=0.0)._drop_labels(big) == 0).all()


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_path_and_scaling_shape_the_input(path: str, make_generator, toy_batch, monkeypatch):
    generator = make_generator(path=path)
    seen = {}
    monkeypatch.setattr(
        generator.dit, "forward", lambda x, t, y: seen.update(x=x, t=t) or torch.zeros_like(x)
    )
    target = generator(toy_batch)["target"]
    t = seen["t"].view(-1, 1, 1, 1)
    p = get_path(path)
    # x_t and v are two equations for x and eps; solving them must give a unit-variance noise back.
    det = p.alpha(t) * p.d_sigma(t) - p.sigma(t) * p.d_alpha(t)
    eps = (p.alpha(t) * target - p.d_alpha(t) * seen["x"]) / det
    x = (p.d_sigma(t) * seen["x"] - p.sigma(t) * target) / det
    assert eps.std().item() == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(
        x.mean((2, 3)), toy_batch["moments"][:, :4].float().mean((2, 3)), atol=0.05, rtol=0
    )
    rebuilt, _ = interpolate(p, x, eps, seen["t"])
    torch.testing.assert_close(rebuilt, seen["x"], atol=1e-4, rtol=1e-4)


def test_an_auxiliary_sees_the_tapped_tokens_and_adds_its_weighted_loss(make_generator, toy_batch):
    generator, probe = make_generator(), Probe()
    generator.attach("probe", probe, taps=2, weight=0.25)
    outputs = generator(toy_batch)
    loss = generator.loss(outputs, toy_batch)
    ((tapped, t_B, batch),) = probe.calls
    assert list(tapped) == [2]
    assert tapped[2].shape == (8, 16, 32)
    assert torch.equal(t_B, outputs["t"])
    assert {"prior.encoder.mid_block", "prior.latent", "label"} <= set(batch)
    torch.testing.assert_close(batch["prior.latent"], toy_batch["moments"][:, :4].float())
    torch.testing.assert_close(loss["total"], loss["flow"] + 0.25 * loss["probe"])
    loss["total"].backward()
    # adaLN-Zero: at the start gradients reach a block through its gates only.
    assert generator.dit.blocks[1].adaLN_modulation[1].weight.grad.abs().sum() > 0


def test_an_auxiliary_with_several_taps_gets_the_tensors_that_the_next_blocks_read(
    make_generator, toy_batch
):
    generator, probe = make_generator(), Probe()
    read = {}
    for number, block in enumerate(generator.dit.blocks):
        block.register_forward_pre_hook(lambda _, args, n=number: read.update({n: args[0]}))
    generator.attach("probe", probe, taps=[2, 1, 2])
    generator(toy_batch)
    ((tapped, _, _),) = probe.calls
    assert list(tapped) == [1, 2]
    assert all(tapped[block] is read[block] for block in tapped)


def test_at_weight_zero_the_auxiliary_is_not_run_but_every_parameter_takes_part(
    make_generator, toy_batch
):
    generator, probe = make_generator(), Probe()
    generator.attach("probe", probe, taps=1)
    generator.set_weight("probe", 0.0)
    loss = generator.loss(generator(toy_batch), toy_batch)
    loss["total"].backward()
    assert probe.calls == []
    assert loss["probe"] == 0
    assert probe.scale.grad == 0


def test_detaching_leaves_exactly_the_vanilla_keys(make_generator):
    plain, generator = make_generator(), make_generator()
    generator.attach("probe", Probe(), taps=1)
    assert "attachments.probe.scale" in generator.state_dict()
    generator.detach("probe")
    assert list(generator.state_dict()) == list(plain.state_dict())
    assert all(name.startswith("dit.") for name in plain.state_dict())


def test_a_checkpoint_with_other_auxiliaries_is_refused_by_name(make_generator):
    plain, aligned = make_generator(), make_generator()
    aligned.attach("probe", Probe(), taps=1)
    with pytest.raises(ValueError, match="holds state of the auxiliary 'probe'"):
        plain.load_state_dict(aligned.state_dict(), strict=False)
    with pytest.raises(ValueError, match="has the auxiliary 'probe', but the checkpoint"):
        aligned.load_state_dict(plain.state_dict(), strict=False)


@pytest.mark.parametrize(
    ("name", "tap", "message"),
    [
        ("probe", 0, "outside the backbone's blocks 1 to 3"),
        ("probe", 4, "outside the backbone's blocks 1 to 3"),
        ("probe", [1, 4], "outside the backbone's blocks 1 to 3"),
        ("probe", [], "names no block"),
        ("flow", 1, "already there"),
        ("there", 1, "already there"),
    ],
)
def test_attaching_wrongly_says_so(name: str, tap: int, message: str, make_generator):
    generator = make_generator()
    generator.attach("there", Probe(), taps=1)
    with pytest.raises(ValueError, match=message):
        generator.attach(name, Probe(), taps=tap)


_BARE_BUILD = textwrap.dedent("""
    import sys, hashlib, torch
    BLOCK = {blocked!r}
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.startswith(tuple(BLOCK)):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Missing())
    torch.manual_seed(0)
    from torch.utils.data import DataLoader
    from ahpa_scale.models.dit import build_dit
    from ahpa_scale.models.generator import DiffusionGenerator
    from ahpa_scale.models.vae_config import LatentScaling
    sys.path.insert(0, {tests!r})
    from conftest import ToyLatents
    dit = build_dit("tiny/2", input_size=8, num_classes=10, depth=3, width=32, heads=2)
    for p in dit.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=0.05)
    model = DiffusionGenerator(dit, scaling=LatentScaling("config", (0.0,) * 4, (1.0,) * 4))
    if {attach}:
        from ahpa_scale.algorithms.ahpa import AHPA
        from conftest import LEVELS
        state = torch.get_rng_state()
        model.attach("alignment", AHPA(LEVELS).build(dit), taps=1)
        model.detach("alignment")
        torch.set_rng_state(state)
    batch = next(iter(DataLoader(ToyLatents(), batch_size=8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    digest = hashlib.sha256()
    for _ in range(3):
        loss = model.loss(model(batch), batch)["total"]
        nodes, todo = [], [loss.grad_fn]
        while todo:
            node = todo.pop()
            if node is None: continue
            nodes.append(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        digest.update(loss.detach().numpy().tobytes() + " ".join(nodes[:2000]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    print(digest.hexdigest())
""")


def test_without_alignment_it_is_bit_identical_to_a_build_in_which_ahpa_does_not_exist():
    """State dict, autograd graph and losses of three steps: with AHPA's code missing, unused,
    and attached then detached.
    """
    ahpa = ["ahpa_scale.method", "ahpa_scale.algorithms"]

    def digest(blocked: list[str], attach: bool) -> str:
        code = _BARE_BUILD.format(
            blocked=blocked, attach=attach, tests=str(__file__.rsplit("/", 1)[0])
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    missing = digest(ahpa, attach=False)
    assert len(missing) == 64
    assert digest([], attach=False) == missing
    assert digest([], attach=True) == missing
