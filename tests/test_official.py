# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the official DiT, SiT and REPA code are opened as models to draw from."""

from __future__ import annotations

import random

import fsspec
import pytest
import torch
from hostile_pickles import Evil, pickle_of, with_pickle
from official_files import DIT_ARGS, REPA_ARGS, SIT_ARGS, filled, inputs, trained_by

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.official import Told, read_official
from ahpa_scale.interchange.shapes import infer_model
from ahpa_scale.interchange.sit import sit_content, with_time_reversed, without_sigma
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.models import as_velocity, build_dit
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.run.drawable import network_of, open_model
from ahpa_scale.run.weights import open_weights


def tiny_args(args):
    """Without the name of a size, whose heads a tiny model does not have."""
    return {**args, "model": None}


def test_a_sit_checkpoint_is_called_in_our_time(tmp_path):
    model = filled(learn_sigma=True)
    path = trained_by(tmp_path / "0400000.pt", model, tiny_args(SIT_ARGS))
    opened, (x, t, y) = open_model(str(path)), inputs()
    assert torch.equal(opened.backbone(x, t, y), -model(x, 1 - t, y))
    told = opened.description
    assert (told.convention, told.path, told.kind) == ("sit", "linear", "ema")
    assert (told.depth, told.width, told.heads, told.patch_size) == (2, 192, 3, 2)
    assert (told.input_size, told.num_classes, told.learn_sigma) == (8, 10, True)
    assert told.vae == "stabilityai/sd-vae-ft-ema"
    assert told.scaling is not None
    assert told.scaling.scale == (0.18215,) * 4
    assert open_model(str(path), "model").description.kind == "model"


def test_a_dit_checkpoint_predicts_noise_on_its_own_path(tmp_path):
    model = filled(learn_sigma=True)
    path = trained_by(tmp_path / "a.pt", model, tiny_args(DIT_ARGS))
    opened, (x, t, y) = open_model(str(path)), inputs()
    assert torch.equal(opened.backbone(x, t, y), as_velocity(model, "dit-eps")(x, t, y))
    assert (opened.description.convention, opened.description.path) == ("dit-eps", "vp")


def test_a_repa_checkpoint_has_our_time_and_loses_its_projectors(tmp_path):
    model = filled()
    path = trained_by(tmp_path / "a.pt", model, tiny_args(REPA_ARGS), projectors=3, steps=400_000)
    opened, (x, t, y) = open_model(str(path)), inputs()
    assert torch.equal(opened.backbone(x, t, y), model(x, t, y))
    told = opened.description
    assert (told.convention, told.path, told.batch) == ("velocity", "gvp", 400_000)
    assert opened.remarks == ("3 tensors of REPA's projectors dropped",)


def test_repas_first_block_names_and_irepas_latents(tmp_path):
    model = filled(depth=3)
    renamed = {
        name.replace("blocks.2.", "decoder_blocks.0."): value
        for name, value in model.state_dict().items()
    }
    torch.save({"ema": renamed}, tmp_path / "a.pt")
    opened, (x, t, y) = open_model(str(tmp_path / "a.pt"), told=Told("repa")), inputs()
    assert torch.equal(opened.backbone(x, t, y), model(x, t, y))
    args = {**tiny_args(REPA_ARGS), "spnorm_method": "zscore"}
    opened = open_model(str(trained_by(tmp_path / "b.pt", filled(), args)))
    assert opened.description.scaling is None
    assert opened.remarks == ("the file does not tell how its latents are scaled",)


def test_a_bare_file_must_be_named_unless_its_own_name_is_the_published_one(tmp_path):
    model, (x, t, y) = filled(learn_sigma=True), inputs()
    bare = tmp_path / "model.pt"
    torch.save(model.state_dict(), bare)
    with pytest.raises(UserError, match="name it with --as dit, --as sit or --as repa"):
        open_model(str(bare))
    expected = {
        "dit": as_velocity(model, "dit-eps")(x, t, y),
        "sit": -model(x, 1 - t, y),
        "repa": model(x, t, y),
    }
    for layout, velocity in expected.items():
        opened = open_model(str(bare), told=Told(layout))
        assert torch.equal(opened.backbone(x, t, y), velocity)
        assert opened.description.kind == "model"
    for name in ("DiT-XL-2-256x256.pt", "SiT-XL-2-256x256.pt"):
        torch.save(model.state_dict(), tmp_path / name)
        opened = open_model(str(tmp_path / name))
        assert torch.equal(opened.backbone(x, t, y), expected[name[:3].lower()])
        assert (opened.description.kind, opened.description.run_name) == ("ema", name[:-3])
    store = fsspec.filesystem("memory")
    store.put(str(bare), "/official/model.pt")
    opened = open_model("memory://official/model.pt", told=Told("sit"))
    assert torch.equal(opened.backbone(x, t, y), expected["sit"])


def test_heads_come_from_the_norm_the_arguments_the_width_or_the_user(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(filled(qk_norm=True, width=96, heads=2).state_dict(), path)
    assert open_model(str(path), told=Told("repa")).description.heads == 2
    torch.save(filled(width=96, heads=2).state_dict(), path)
    with pytest.raises(UserError, match="no published size has the width 96: name them with --h"):
        open_model(str(path), told=Told("repa"))
    assert open_model(str(path), told=Told("repa", 2)).description.heads == 2
    with pytest.raises(UserError, match="width 96 is not a multiple of heads 5"):
        open_model(str(path), told=Told("repa", 5))
    args = {**SIT_ARGS, "model": "SiT-S/2"}
    opened = open_model(str(trained_by(path, filled(width=384, heads=6), args)))
    assert opened.description.heads == 6


def test_a_real_size_is_told_by_its_shapes():
    with torch.device("meta"):
        model = build_dit("B/2", input_size=32, learn_sigma=True)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    told = infer_model(shapes, "x")
    assert (told.depth, told.width, told.heads, told.input_size) == (12, 768, 12, 32)
    assert (told.num_classes, told.null_class, told.in_channels) == (1000, True, 4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({**SIT_ARGS, "path_type": "VP"}, "the path 'VP', which is not read; known are Linear"),
        ({**SIT_ARGS, "prediction": "noise"}, "predicts 'noise', which is not read"),
        ({**SIT_ARGS, "num_classes": 7}, "a label table of 11 rows for 7 classes"),
        ({**DIT_ARGS, "diffusion_steps": 100}, "trained on other than 1000 steps"),
        ({**REPA_ARGS, "path_type": ["x"]}, "which is not read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, args, said):
    path = trained_by(tmp_path / "a.pt", filled(), tiny_args(args))
    with pytest.raises(UserError, match=said) as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_such_model_are_one_line(tmp_path):
    path, model = tmp_path / "a.pt", filled()
    state = model.state_dict()
    for content, said in (
        ([1], "holds no weights"),
        ({"x": 1}, "has neither 'ema' nor 'model'"),
        ({"w": torch.ones(2)}, "it lacks 'x_embedder.proj.weight'"),
        ({**state, "pos_embed": torch.ones(1, 15, 192)}, "is no square transformer"),
        ({**state, "final_layer.linear.weight": torch.ones(3, 192)}, "predicts 3 numbers"),
        ({**state, "more": torch.ones(1)}, "has a strange 'more'"),
        ({**state, "x_embedder.proj.bias": torch.ones(3)}, "size mismatch for x_embedder"),
        ({"model": state}, "holds the kind 'model' only, not 'ema'"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=said):
            open_model(str(path), "ema" if "kind" in said else None, Told("repa"))
    del state["x_embedder.proj.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"lacks 'x_embedder\.proj\.bias'"):
        open_model(str(path), told=Told("repa"))


def test_a_planted_object_is_dropped_and_said(tmp_path):
    import os

    mark = tmp_path / "mark"
    content = {"ema": filled().state_dict(), "args": Evil(os.system, f"touch {mark}")}
    torch.save(content, tmp_path / "a.pt")
    opened = open_model(str(tmp_path / "a.pt"), told=Told("repa"))
    assert opened.remarks == ("1 objects that are no data dropped (posix.system)",)
    assert not mark.exists()


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_is_anything_but_one_line(tmp_path, seed):
    """A hundred files with bytes changed, removed or repeated, in pickle and archive."""
    model = filled(depth=1, width=24, heads=2, num_classes=3, input_size=4)
    honest, changed = tmp_path / "a.pt", tmp_path / "b.pt"
    args = {"path_type": "Linear", "num_classes": 3, "prediction": "velocity"}
    torch.save({"ema": model.state_dict(), "args": args, "steps": 3}, honest)
    pickle, whole = pickle_of(honest), honest.read_bytes()
    draw, said = random.Random(seed), []
    for number in range(100):
        content = bytearray(pickle if number % 4 else whole)
        for _ in range(draw.randint(1, 3)):
            # The archive's directory is at its end.
            first = 0 if number % 4 else len(content) - 6000
            place = draw.randrange(first, len(content))
            what = draw.random()
            if what < 0.5 or not number % 4:
                content[place] = draw.randrange(256)
            elif what < 0.7:
                del content[place : place + draw.randint(1, 20)]
            else:
                content[place:place] = content[place // 2 : place // 2 + draw.randint(1, 30)]
        if number % 4:
            with_pickle(honest, bytes(content), changed)
        else:
            changed.write_bytes(content)
        try:
            read_official(changed, "b.pt", None, Told("sit", 2))
        except UserError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not any("\n" in line for line in said)


# Our weights for SiT's code


def described(model, **options) -> StoredModel:
    told = ModelDescription(2, 192, 3, 2, 8, 4, 10, qk_norm=False, **options)
    return StoredModel(told, model.state_dict(), "x")


def test_weights_for_sits_code_give_its_velocity_at_its_time(tmp_path):
    model, (x, t, y) = filled(), inputs()
    torch.save(sit_content(described(model)), tmp_path / "a.pt")
    # As `find_model` of SiT's download.py, and its model, which is this network.
    official = build_dit("tiny/2", input_size=8, depth=2, num_classes=10)
    official.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True)["ema"])
    expected = -model(x, 1 - t, y)
    found = official(x, t, y)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_ours_to_sit_and_back_is_the_same_to_the_bit(tmp_path):
    model, path = filled(), tmp_path / "a.pt"
    stored = described(model, classes=tuple("abcdefghij"), batch=7, vae="demo")
    torch.save(sit_content(stored), path)
    back = open_weights(str(path))
    assert back.description == stored.description
    assert back.weights.keys() == stored.weights.keys()
    for name, value in stored.weights.items():
        assert torch.equal(back.weights[name].view(torch.int32), value.view(torch.int32)), name
    with pytest.raises(UserError, match="holds the kind 'ema' only, not 'model'"):
        open_weights(str(path), "model")
    # Trained further by SiT's code: the original layer is out of date.
    content = torch.load(path, weights_only=True)
    content["ema"]["t_embedder.mlp.0.weight"] *= 1.5
    torch.save(content, path)
    changed = open_weights(str(path))
    assert changed.remarks == ("its weights have changed since this package wrote it",)
    expected = 1.5 * model.state_dict()["t_embedder.mlp.0.weight"]
    torch.testing.assert_close(changed.weights["t_embedder.mlp.0.weight"], expected)


def test_official_sit_weights_become_ours_by_arithmetic(tmp_path):
    model, (x, t, y) = filled(learn_sigma=True), inputs()
    stored = described(model, learn_sigma=True, convention="sit")
    ours = without_sigma(with_time_reversed(stored))
    assert (ours.description.convention, ours.description.learn_sigma) == ("velocity", False)
    expected = -model(x, 1 - t, y)
    found = network_of(ours)(x, t, y)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    with pytest.raises(UserError, match="predicts noise at 1,000 steps"):
        with_time_reversed(described(model, learn_sigma=True, convention="dit-eps"))


@pytest.mark.parametrize("change", [{"null_class": False}, {"qk_norm": True}])
def test_what_sits_code_does_not_have_is_refused(change):
    model = filled(qk_norm="qk_norm" in change)
    told = ModelDescription(2, 192, 3, 2, 8, 4, 10, **change)
    with pytest.raises(UserError, match="SiT's code has no such model"):
        sit_content(StoredModel(told, model.state_dict(), "x"))
