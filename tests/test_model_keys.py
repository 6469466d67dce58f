# SPDX-License-Identifier: Apache-2.0
"""Keys of the backbone's shape, models without classes, and compiled blocks."""

from __future__ import annotations

import shutil

import pytest
import torch
from data_sets import GRID, SIZE

from ahpa_scale.config.checks.static import check_data, geometry
from ahpa_scale.config.load import ConfigError
from ahpa_scale.data.card import read_card
from ahpa_scale.models.dit import build_dit
from ahpa_scale.run.build import build_generator, build_trainer

SHAPE = ("model.depth=3", "model.width=48", "model.heads=4")


@pytest.mark.parametrize("key", ["depth", "width", "heads"])
def test_null_is_the_sizes_own(key, load):
    own = geometry(load("model.name=tiny/2"))
    assert geometry(load("model.name=tiny/2", f"model.{key}=null")) == own
    changed = geometry(load("model.name=tiny/2", f"model.{key}={2 * getattr(own, key)}"))
    assert getattr(changed, key) == 2 * getattr(own, key)


def test_the_default_tap_follows_the_depth(load):
    deep = load("model.name=tiny/2", "model.depth=16", "alignment.kind=ahpa")
    assert deep.alignment.tap == 4
    assert load("model.name=tiny/2", "alignment.kind=ahpa").alignment.tap == 2
    load("model.name=tiny/2", "model.depth=16", "alignment.kind=ahpa", "alignment.tap=16")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.width=50",), ["model.width", "multiple of heads 3"]),
        (("model.heads=5",), ["model.heads", "multiple of heads 5"]),
        (("model.depth=0",), ["model.depth", "at least 1"]),
        (
            ("model.name=tiny/3", "model.width=48", "model.input_size=32"),
            ["model.name", "patch size"],
        ),
        (("model.depth=2", "alignment.kind=ahpa", "alignment.tap=3"), ["alignment.tap", "2"]),
    ],
)
def test_a_shape_that_does_not_fit_names_its_key(overrides, words, complaint):
    given = dict(item.split("=") for item in ("model.name=tiny/2", *overrides))
    said = complaint(*(f"{key}={value}" for key, value in given.items()))
    for word in words:
        assert word in said


@pytest.fixture
def small(load, prepared, vae_path, tmp_path):
    """A run on the prepared pictures of three classes."""

    def make(*overrides: str):
        side = SIZE // 4
        return load(
            "model.name=tiny/2",
            *(item for item in SHAPE if item.split("=")[0] + "=" not in "".join(overrides)),
            f"model.input_size={side}",
            f"vae.path={vae_path}",
            f"data.local={prepared}",
            "data.num_workers=0",
            "device=cpu",
            "global_train_batch_size=8",
            f"output_dir={tmp_path / 'run'}",
            *overrides,
        )

    return make


def test_the_backbone_has_the_shape_asked_for(small, prepared):
    config = small("model.num_classes=3")
    dit = build_generator(config, read_card(prepared)).dit
    assert (dit.depth, dit.width, dit.heads, dit.grid) == (3, 48, 4, GRID)
    assert len(dit.blocks) == 3
    assert dit.checkpoint_every is None


def test_blocks_recompute_every_so_often(small, prepared):
    config = small("model.num_classes=3", "parallelism.activation_checkpointing=2")
    assert build_generator(config, read_card(prepared)).dit.checkpoint_every == 2


def test_one_class_is_unconditional_on_any_data_set(small, prepared, complaint):
    config, card = small("model.num_classes=1"), read_card(prepared)
    assert card.num_classes == 3
    check_data(config, card)
    generator = build_generator(config, card)
    assert generator.dit.null_label is None
    latent = torch.rand(4, 2 * 4, SIZE // 4, SIZE // 4).half()
    whole = {name: torch.arange(4) for name in ("index", "epoch")}
    outputs = [
        generator({**whole, "moments": latent, "label": label_B})["velocity"]
        for label_B in (torch.tensor([0, 1, 2, 2]), torch.zeros(4, dtype=torch.int64))
    ]
    assert torch.equal(*outputs)


def test_other_numbers_of_classes_must_still_agree(small, prepared):
    with pytest.raises(ConfigError, match="has 3; 1 ignores its labels"):
        check_data(small("model.num_classes=2"), read_card(prepared))


def test_what_needs_classes_is_refused_without_them(complaint):
    one = ("model.num_classes=1",)
    assert "model.label_dropout" in complaint("model.label_dropout=0.2", *one)
    said = complaint("sampling={interval: 9ba, guidance_scale: 2.0}", *one)
    assert "sampling.guidance_scale" in said
    assert "model.num_classes is 1" in said


def test_an_unconditional_run_draws_its_grid_and_trains(small, prepared, tmp_path):
    config = small("model.num_classes=1", "max_duration=2ba", "sampling={interval: 2ba, steps: 1}")
    card = read_card(prepared)
    trainer = build_trainer(config, card, check_data(config, card))
    trainer.fit()
    trainer.close()
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_compiled_blocks_compute_alike_and_keep_their_names(small, prepared):
    config = small("model.num_classes=3", "parallelism.compile=true", "precision=fp32")
    card = read_card(prepared)
    trainer = build_trainer(config, card, check_data(config, card))
    dit = trainer.state.model.dit
    assert all(block._compiled_call_impl is not None for block in dit.blocks)
    plain = build_generator(config, card).dit
    assert dit.state_dict().keys() == plain.state_dict().keys()
    # At initialisation a block is the identity; other weights show whether it computes.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own, same in zip(dit.parameters(), plain.parameters(), strict=True):
            own.normal_(std=0.1, generator=generator)
            same.copy_(own)
        inputs = (torch.randn(2, 4, SIZE // 4, SIZE // 4), torch.rand(2), torch.tensor([0, 2]))
        velocity_BCHW = dit(*inputs)
        torch.testing.assert_close(velocity_BCHW, plain(*inputs), rtol=1e-3, atol=1e-4)
    assert velocity_BCHW.std() > 0.01
    trainer.close()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_compiled_blocks_compute_in_bfloat16():
    """torch's compiler once made NaN of a patch embedding's tokens, which were transposed."""
    torch.manual_seed(0)
    dit = build_dit("tiny/2", input_size=16, num_classes=3, depth=1, width=64, heads=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for weight in dit.parameters():
            weight.normal_(std=0.1)
        inputs = (torch.randn(2, 4, 16, 16), torch.rand(2), torch.tensor([0, 2]))
        expected = dit(*inputs)
        dit.blocks[0].compile()
        torch.testing.assert_close(dit(*inputs), expected, rtol=0.05, atol=0.05)


def test_compiling_without_a_compiler_is_one_line(small, prepared, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = small("model.num_classes=3", "parallelism.compile=true")
    card = read_card(prepared)
    targets = check_data(config, card)
    with pytest.raises(ConfigError, match=r"parallelism\.compile.*no-such-compiler"):
        build_trainer(config, card, targets)
