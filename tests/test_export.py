# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale export` and `ahpa-scale import`: to other projects' files and back, to the bit.

Legend: B batch, C channels, H W.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluated_run import model_of
from official_files import SIT_ARGS, filled, trained_by
from safetensors import safe_open
from safetensors.torch import load_file

from ahpa_scale.cli import main
from ahpa_scale.errors import UserError
from ahpa_scale.models.description import DESCRIPTION
from ahpa_scale.models.dit import DiT
from ahpa_scale.models.flops import forward_flops
from ahpa_scale.models.flow import get_path
from ahpa_scale.models.randomness import normal, sample_key
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import DEMO_VAE_FOLDER
from ahpa_scale.run.drawable import open_model
from ahpa_scale.run.weights import open_weights
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import SamplerSettings

#: Loads an exported folder where neither this package nor its training libraries can be imported.
CLEAN = """
import sys
for name in ("ahpa_scale", "composer", "streaming", "deepspeed"):
    sys.modules[name] = None
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
folder, given, out = sys.argv[1:4]
options = {"vae": AutoencoderKL.from_pretrained(sys.argv[4])} if len(sys.argv) > 4 else {}
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
pipeline.set_progress_bar_config(disable=True)
latents = torch.load(given, weights_only=True)
made = {}
for scale in (1.0, 2.5):
    call = dict(num_inference_steps=6, guidance_scale=scale, latents=latents)
    call |= dict(guidance_interval=(0.2, 1.0))
    made[f"{scale}"] = pipeline([0, 3, 7], output_type="pt", **call).images
pictures = pipeline([0, 3, 7], num_inference_steps=6, latents=latents).images
pictures[0].save(out + ".png")
named = pipeline(list(pipeline.labels)[:1], num_inference_steps=2, generator=torch.manual_seed(0))
assert named.images[0].size == pictures[0].size
made["parameters"] = sum(value.numel() for value in pipeline.transformer.parameters())
made["labels"] = list(pipeline.labels)
torch.save(made, out)
"""


def cli(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def same_bits(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value.view(torch.int32), other[name].view(torch.int32)), name


@pytest.fixture(scope="module")
def checkpoints(trained: Path) -> Path:
    return trained / "run" / "checkpoints"


def test_both_names_of_the_command_write_the_same_described_file(checkpoints, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert cli("export", checkpoints, a) == 0
    assert cli("checkpoints", "export", checkpoints, b) == 0
    same_bits(load_file(a), load_file(b))
    with safe_open(a, "pt") as file, safe_open(b, "pt") as other:
        facts = file.metadata()
        assert other.metadata() == facts
    assert facts.keys() == {"format", "kind", "batch", DESCRIPTION}
    assert json.loads(facts[DESCRIPTION])["batch"] == 6
    # An exported file is exported again, from a place of its own.
    assert cli("export", a, tmp_path / "c.safetensors") == 0
    same_bits(load_file(a), load_file(tmp_path / "c.safetensors"))


def test_an_aligned_run_gives_the_model_of_one_that_never_was(checkpoints, tmp_path):
    """Nothing of the alignment is left: neither parameters nor operations."""
    assert cli("export", checkpoints, tmp_path / "w.safetensors") == 0
    told = open_weights(str(tmp_path / "w.safetensors")).description
    never = DiT(told.geometry(), in_channels=told.in_channels, num_classes=told.num_classes)
    ours = open_model(str(tmp_path / "w.safetensors")).backbone
    assert load_file(tmp_path / "w.safetensors").keys() == dict(never.named_parameters()).keys()
    assert forward_flops(ours) == forward_flops(never) > 0


def test_ours_to_sit_and_back_through_the_commands(checkpoints, tmp_path, capsys):
    pt, back = tmp_path / "sit.pt", tmp_path / "back.safetensors"
    assert cli("export", checkpoints, pt, "--format", "sit") == 0
    assert "its sample.py takes --ckpt, --num-classes 8" in capsys.readouterr().err.lower()
    assert cli("import", pt, back) == 0
    ours = open_weights(str(checkpoints))
    same_bits(ours.weights, load_file(back))
    assert open_weights(str(back)).description == ours.description
    loaded = torch.load(pt, weights_only=True)["ema"]
    assert loaded.keys() == ours.weights.keys()


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "dit"
    assert cli("export", checkpoints, out, "--format", "diffusers") == 0
    return out


@torch.no_grad()
def ours(place: Path, labels_B: torch.Tensor, scale: float) -> torch.Tensor:
    """Pictures of our own sampler, float in [0, 1] before they are rounded."""
    opened = open_model(str(place))
    z_BCHW = sample(
        opened.backbone,
        labels_B=labels_B,
        index_B=torch.arange(len(labels_B)),
        shape=(8, 8, 8),
        path=get_path(opened.description.path),
        settings=SamplerSettings(steps=6, guidance_scale=scale, guidance_interval=(0.2, 1.0)),
    )
    vae = FrozenVAE.from_pretrained("demo")
    image = vae.model.decode(opened.description.scaling.denormalise(z_BCHW)).sample
    return image.div(2).add(0.5).clamp(0, 1)


def drawn_cleanly(folder: Path, room: Path, *words: object) -> dict:
    noise = normal(sample_key(0, 0, torch.arange(3), "sampling.start"), (8, 8, 8))
    torch.save(noise, room / "noise.pt")
    place = {"HF_HOME": str(room / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-I", "-c", CLEAN, folder, room / "noise.pt", room / "made.pt"]
    done = subprocess.run(
        [str(word) for word in (*command, *words)],
        cwd=room,
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (room / "made.pt.png").stat().st_size > 100
    return torch.load(room / "made.pt", weights_only=True)


def test_a_clean_process_draws_our_samplers_pictures(checkpoints, trained, folder, tmp_path):
    made = drawn_cleanly(folder, tmp_path)
    for scale in (1.0, 2.5):
        expected = ours(checkpoints, torch.tensor([0, 3, 7]), scale)
        assert made[f"{scale}"].shape == expected.shape == (3, 3, 32, 32)
        assert expected.std() > 0.05
        assert (made[f"{scale}"] - expected).abs().max() < 1e-4
    # Guidance moves a model of six batches a little, but more than rounding does.
    assert (made["1.0"] - made["2.5"]).abs().max() > 2e-3
    dit = model_of(checkpoints / "ba6", trained / "data").dit
    assert made["parameters"] == sum(value.numel() for value in dit.parameters())
    assert made["labels"] == list(open_weights(str(checkpoints)).description.classes)


def test_ours_to_diffusers_and_back(checkpoints, folder, tmp_path):
    expected = open_weights(str(checkpoints))
    back = open_weights(str(folder))
    same_bits(expected.weights, back.weights)
    told = back.description
    assert told.vae == str(folder / "vae")
    assert (told.vae_identity, told.classes) == (
        expected.description.vae_identity,
        expected.description.classes,
    )
    assert cli("import", folder, tmp_path / "back.safetensors") == 0
    same_bits(expected.weights, load_file(tmp_path / "back.safetensors"))
    assert cli("export", folder, tmp_path / "again", "--format", "diffusers") == 0
    for path in ("transformer/config.json", "model_index.json", "vae/config.json", "README.md"):
        assert (folder / path).read_text() == (tmp_path / "again" / path).read_text()


def test_the_folder_says_what_people_must_fill_in(folder):
    card = (folder / "README.md").read_text()
    for words in ("TODO: name the data set", "licence", "trust_remote_code=True)", "6 batches"):
        assert words in card
    code = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert "import ahpa_scale" not in code
    assert "from ahpa_scale" not in code
    assert sorted(path.name for path in folder.rglob("*.py")) == [
        "ahpa_scale_dit.py",
        "dit_layers.py",
        "pipeline.py",
    ]


def test_official_sit_weights_are_drawn_by_the_folder_too(tmp_path):
    model = filled(learn_sigma=True, in_channels=8)
    args = {**SIT_ARGS, "model": None}
    pt = trained_by(tmp_path / "a.pt", model, args)
    told = open_weights(str(pt)).description
    assert told.scaling is None, "eight channels are not those of Stable Diffusion's VAE"
    assert cli("export", pt, tmp_path / "dit", "--format", "diffusers") == 2
    four = trained_by(tmp_path / "b.pt", filled(learn_sigma=True), args)
    assert cli("export", four, tmp_path / "dit", "--format", "diffusers") == 0
    assert not (tmp_path / "dit" / "vae").exists()
    assert "stabilityai/sd-vae-ft-ema" in (tmp_path / "dit" / "README.md").read_text()
    index = json.loads((tmp_path / "dit" / "model_index.json").read_text())
    assert index["vae"] == [None, None]
    back = open_weights(str(tmp_path / "dit"))
    same_bits(open_weights(str(four)).weights, back.weights)
    assert back.description.convention == "sit"


def test_a_vae_can_be_named_and_must_be_the_one_of_the_latents(checkpoints, tmp_path, capsys):
    mine = Path(shutil.copytree(DEMO_VAE_FOLDER, tmp_path / "mine"))
    words = ("--format", "diffusers", "--vae", mine)
    assert cli("export", checkpoints, tmp_path / "a", *words) == 0
    weights = load_file(mine / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_in.bias"] += 1
    from safetensors.torch import save_file

    save_file(weights, mine / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert cli("export", checkpoints, tmp_path / "b", *words) == 2
    assert "and the model was trained on latents of" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.pt"], "must end in .safetensors"),
        (["a.safetensors", "--format", "sit"], "must end in .pt"),
        (["a.onnx", "--format", "onnx"], "unknown format 'onnx'; choose safetensors, sit, diff"),
        (["a.safetensors", "--kind", "best"], "unknown kind 'best'"),
        (["a.safetensors", "--vae", "demo"], "the format safetensors holds no VAE"),
        (["full", "--format", "diffusers"], "exists already"),
        (["full/a.safetensors"], "exists already"),
        (["x", "--format", "diffusers", "--vae", "none"], "there is no VAE folder at none"),
    ],
)
def test_mistakes_are_one_line(checkpoints, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.safetensors").write_text("x")
    assert cli("export", checkpoints, *words, "--no-progress") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.safetensors", "full"]


def test_import_names_what_a_file_does_not_tell(tmp_path, capsys):
    bare, out = tmp_path / "bare.pt", tmp_path / "out.safetensors"
    model = filled(learn_sigma=True)
    torch.save({**model.state_dict(), "projectors.0.weight": torch.ones(2)}, bare)
    assert cli("import", bare, out, "--as", "best") == 2
    assert "choose dit, sit or repa" in capsys.readouterr().err
    assert cli("import", bare, out, "--as", "sit") == 0
    said = capsys.readouterr()
    assert "1 tensors of REPA's projectors dropped" in said.err
    assert "depth 2, width 192, patch 2, 10 classes, convention 'sit', path 'linear'" in said.out
    same_bits(dict(model.state_dict()), load_file(out))
    assert cli("import", bare, out, "--as", "sit") == 2
    assert cli("import", bare, out, "--as", "dit", "--overwrite") == 0
    assert open_model(str(out)).description.convention == "dit-eps"
    capsys.readouterr()
    assert cli("export", out, tmp_path / "x", "--format", "diffusers") == 2
    assert "diffusers has a pipeline for it already" in capsys.readouterr().err
    assert cli("export", out, tmp_path / "x.pt", "--format", "sit") == 2
    assert cli("import", out, tmp_path / "y.safetensors", "--as", "sit") == 2
    with pytest.raises(UserError, match="there is nothing at"):
        open_weights(str(tmp_path / "y.safetensors"))
