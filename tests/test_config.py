# SPDX-License-Identifier: Apache-2.0
"""Configuration: shipped runs, what wins over what, one clear line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import ROOT, SHIPPED, SMALL

from ahpa_scale.config.explain import all_keys
from ahpa_scale.config.load import ConfigError, exit_on_user_error, load_config, to_yaml
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.config.schema.fields import Section
from ahpa_scale.errors import UserError


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_yaml_loads_and_survives_the_round_trip(path, load):
    config = load_config([str(path)])
    assert config.run_name == path.stem
    assert load(text=to_yaml(config)) == config


@pytest.mark.parametrize("kind", ["none", "repa", "latent"])
def test_controls_differ_in_nothing_but_the_alignment(kind):
    pair = [load_config([f"{ROOT}/yamls/dit-xl-{name}.yaml"]) for name in ("ahpa", kind)]
    ahpa, control = (
        config.model_dump(exclude={"run_name", "alignment", "output_dir"}) for config in pair
    )
    for dump, name in ((ahpa, "ahpa"), (control, kind)):
        folder = dump["checkpoint"]["save_folder"]
        assert folder.endswith(f"/dit-xl-{name}")
        dump["checkpoint"]["save_folder"] = folder.removesuffix(name)
    assert ahpa == control


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["none", "uniform", "scheduled", "latent", "repa"])
def test_baselines_are_one_override_away(path, kind):
    assert load_config([str(path), f"alignment.kind={kind}"]).alignment.kind == kind


def test_command_line_wins_over_the_file(load):
    config = load(
        "seed=7",
        "optimizer.lr=1e-4",
        "sampling={interval: 9ba, classes: [3, 1]}",
        "alignment.kind=ahpa",
    )
    assert (config.seed, config.optimizer.lr) == (7, 1e-4)
    assert config.sampling.classes == (3, 1)
    text = SMALL + "alignment: {kind: ahpa, groups: {a: [encoder.mid_block]}}\n"
    groups = load("alignment.groups={b: [latent]}", text=text).alignment.groups
    assert groups == {"b": ("latent",)}, "a mapping on the command line replaces the file's"
    assert load("run_name=b").output_dir == "runs/b"


def test_interpolation_reaches_file_command_line_and_environment(load, monkeypatch):
    monkeypatch.setenv("STORE", "s3://store")
    config = load("checkpoint.save_folder=${oc.env:STORE}/${run_name}", "output_dir=x/${run_name}")
    assert config.checkpoint.save_folder == "s3://store/a"
    assert config.output_dir == "x/a"


def test_a_literal_dollar_brace_survives_the_round_trip(load):
    config = load(r"logging.wandb=\${x}")
    assert config.logging.wandb == "${x}"
    assert load(text=to_yaml(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["run.yaml", "empty"]),
        ("# only a comment\n", ["run.yaml", "empty"]),
        ("- a\n- b\n", ["run.yaml", "key: value"]),
        ("just words\n", ["run.yaml", "key: value"]),
        ("seed: [1\n", ["run.yaml:2", "broken YAML"]),
        ("a: 1\n---\nb: 2\n", ["run.yaml", "single document"]),
        ("seed: !!python/object:os.system x\n", ["run.yaml:1", "broken YAML"]),
        (SMALL + "run_name: b\n", ["run.yaml:4: run_name", "twice", "line 1"]),
        (SMALL + "ema:\n  decay: 0.9\n  decay: 0.8\n", ["run.yaml:6: ema.decay", "twice"]),
        (SMALL + "seed: ${nothing}\n", ["run.yaml:4: seed", "nothing"]),
        (SMALL + "seed: ${\n", ["run.yaml", "${"]),
        (SMALL + "seed: ???\n", ["run.yaml:4: seed", "Missing mandatory value"]),
        (SMALL + "7: x\n", ["run.yaml", "7: unknown key"]),
        (SMALL + "ema: &e\n  decay: *e\n", ["run.yaml"]),
        ("max_duration: 1ba\n", ["run_name: this key is required"]),
        ("run_name: 12\nmax_duration: 1ba\n", ["run_name: 12 is a whole number", "quotes"]),
        ("run_name: a/b\nmax_duration: 1ba\n", ["run_name: 'a/b' is not a name"]),
        ("run_name: 2024-01-01\nmax_duration: 1ba\n", ["run.yaml"]),
        (
            SMALL + "optimizer: {lr: '1e-4'}\n",
            ["optimizer.lr: '1e-4' is text", "remove the quotes"],
        ),
        (
            SMALL + "optimizer: {lr: nan}\n",
            ["optimizer.lr: 'nan' is text, where a number is expected"],
        ),
        (SMALL + "optimizer: {betas: [0.9]}\n", ["optimizer.betas[1]", "too short"]),
        (SMALL + "optimizer: {betas: [0.9, 1.5]}\n", ["optimizer.betas[1]: 1.5 must be below 1"]),
        (SMALL + "lr: 1e-4\n", ["run.yaml:4: lr: unknown key", "'optimizer.lr'"]),
        (SMALL + "alignement: {kind: ahpa}\n", ["alignement: unknown key", "'alignment'"]),
        (SMALL + "sampling: {classes: []}\n", ["sampling.classes", "empty"]),
    ],
)
def test_bad_file_earns_one_line(complaint, text, words):
    line = complaint(text=text)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed"], ["command line: seed", "key=value"]),
        (["--seed=1"], ["command line: --seed=1", "without dashes: seed=1"]),
        (["seed="], ["command line: seed", "null"]),
        (["seed={"], ["command line: seed", "broken value"]),
        (["seed=1", "seed=2"], ["command line: seed", "twice"]),
        (["seed.x=1"], ["command line: seed: {'x': 1} is a section"]),
        (["run_name.x=1"], ["command line: run_name.x: run_name is a value"]),
        (["seed=1.0"], ["command line: seed: 1.0 is a number", "write 1"]),
        (["seed=true"], ["command line: seed: true is true/false"]),
        (["optimizer.lr=.nan"], ["optimizer.lr: nan is not a finite number"]),
        (["max_duration=400000bs"], ["'400000bs' needs one of the units", "perhaps '400000"]),
        (["max_duration=0.5dur"], ["max_duration: '0.5dur' needs one of the units"]),
        (["max_duration=0ba"], ["max_duration: '0ba' must be above 0"]),
        (["parallelism.engine=fsdp"], ["did you mean 'fsdp2'?"]),
        (["precision=amp_bf15"], ["did you mean 'amp_bf16'?"]),
        (["data.cache_limit=500"], ["data.cache_limit: '500' is not a size", "'500gb'"]),
        (["max_duration=400000"], ["max_duration: '400000' needs one of the units"]),
        (["alignment.until=100"], ["alignment.until: '100' needs one of the units"]),
        (["model.name=XXL/2"], ["model.name", "'XL/2'"]),
        (["model.name=XL/3", "model.input_size=32"], ["model.name", "multiple of patch size 3"]),
        (["model.in_channels=16"], ["model.in_channels: 16 does not fit the VAE"]),
        (["vae.path={dir}"], ["vae.path", "no readable config.json"]),
        (["data.local=null"], ["data.local: name the data set's folder"]),
        (["device_train_microbatch_size=100"], ["the nearest that does is 128"]),
        (["device_train_microbatch_size=0"], ["device_train_microbatch_size: 0 must be at least"]),
        (["device_train_microbatch_size=x"], ["device_train_microbatch_size: 'x' is", "'auto'"]),
        (["precision=amp_fp16", "device=cpu"], ["precision: 'amp_fp16' needs a gpu"]),
        (["checkpoint.autoresume=true"], ["checkpoint.autoresume: true would have no effect"]),
        (["sampling.steps=40"], ["sampling.steps: 40 would have no effect"]),
        (["sampling.preset=fast"], ["sampling.preset: 'fast' would have no effect"]),
        (
            ["sampling={interval: 9ba, preset: sit-sde}"],
            ["sampling.preset: unknown preset 'sit-sde'", "did you mean 'sit-sde250'"],
        ),
        (
            ["sampling={interval: 9ba, preset: sit-ode-dopri5}"],
            ["sampling.preset: 'sit-ode-dopri5' chooses its steps by itself"],
        ),
        (
            ["sampling={interval: 9ba, guidance_scale: 1.0, guidance_interval: [0, 0.7]}"],
            ["sampling.guidance_interval", "would have no effect: sampling.guidance_scale is 1"],
        ),
        (["ema.decay=1.0"], ["ema.decay: 1.0 must be above 0 and below 1"]),
        (["ema.decay='0.9'"], ["ema.decay: '0.9' needs one of the units", "write a number"]),
        (["ema.decay=true"], ["ema.decay: True is neither a number nor a half-life"]),
        (["optimizer.warmup=100ba"], ["optimizer.warmup: '100ba' must lie before the end"]),
        (
            ["sampling.interval=9ba", "sampling.classes=[1000]", "model.num_classes=1000"],
            ["sampling.classes: there is no class 1000", "999"],
        ),
        (
            ["sampling={interval: 9ba, guidance_scale: 2.0}", "model.label_dropout=0"],
            ["model.label_dropout above 0"],
        ),
    ],
)
def test_bad_override_earns_one_line(complaint, tmp_path, overrides, words):
    line = complaint(*(item.replace("{dir}", str(tmp_path)) for item in overrides))
    assert all(word in line for word in words), line


def test_batch_must_suit_the_number_of_processes(complaint, load, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "global_train_batch_size: 256 can't be shared evenly by 3" in complaint()
    assert load("global_train_batch_size=255").global_train_batch_size == 255
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert "environment: WORLD_SIZE" in complaint()


def test_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"the nearest is .*dit-xl-ahpa\.yaml"):
        load_config([str(ROOT / "yamls" / "dit-xl-ahap.yaml")])
    with pytest.raises(ConfigError, match=r"the folder .*nowhere does not exist"):
        load_config([str(tmp_path / "nowhere" / "x.yaml")])
    with pytest.raises(ConfigError, match="this is a folder"):
        load_config([str(tmp_path)])
    (tmp_path / "x.yaml").write_bytes(b"run_name: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config([str(tmp_path / "x.yaml")])


@pytest.mark.parametrize(
    ("argv", "words"), [([], "name a YAML file"), (["seed=1"], "stands first")]
)
def test_arguments_need_a_file_first(argv, words):
    with pytest.raises(ConfigError, match=words):
        load_config(argv)


def test_every_key_says_what_it_is():
    def fields(section: type[Section]) -> Iterator[str | None]:
        for field in section.model_fields.values():
            yield field.description
            for inner in get_args(field.annotation) or (field.annotation,):
                if isinstance(inner, type) and issubclass(inner, Section):
                    yield from fields(inner)

    described = list(fields(Config))
    assert len(described) == len(list(all_keys())) > 60
    assert all(described)


def test_defaults_that_an_earlier_version_wrote_down_are_no_mistake(load):
    given = ["sampling.steps=50", "sampling.method=euler", "sampling.guidance_scale=1.0"]
    assert load(*given).sampling.sampler() == load().sampling.sampler()


def test_a_preset_of_the_grid_is_changed_by_the_keys_beside_it(load):
    sampler = load("sampling={interval: 9ba, preset: fast, steps: 9}").sampling.sampler()
    assert (sampler.method, sampler.steps, sampler.guidance_scale) == ("heun", 9, 1.0)


def test_a_configuration_is_read_only(load):
    with pytest.raises(ValueError, match="frozen"):
        load().optimizer.lr = 1.0


@given(st.integers(0, 10**9), st.sampled_from(["ep", "ba", "sp"]))
def test_times_mean_what_composer_means(value, unit):
    from composer.core import Time

    theirs = Time.from_timestring(f"{value}{unit}")
    assert parse_time(f"{value}{unit}") == (theirs.value, theirs.unit.value)


@given(st.floats(0, 1).map(lambda share: f"{share:.6f}dur"))
def test_shares_mean_what_composer_means(text):
    from composer.core import Time

    assert parse_time(text) == (Time.from_timestring(text).value, "dur")


def test_loading_needs_nothing_heavy():
    heavy = ["torch", "composer", "diffusers", "streaming", "transformers"]
    code = (
        "import sys; from ahpa_scale.config.load import load_config;"
        f"load_config(['yamls/dit-xl-ahpa.yaml']); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("rank", "printed"), [(None, True), ("0", True), ("3", False)])
def test_only_one_rank_speaks(monkeypatch, capsys, rank, printed):
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise UserError("two\nlines")
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("error: two lines\n" if printed else "")


def test_a_fault_of_a_library_is_no_mistake_of_the_users():
    with pytest.raises(ValueError, match="torch's own"), exit_on_user_error():
        raise ValueError("torch's own")


def test_a_misspelt_key_is_named_even_where_an_interpolation_misses_it(complaint):
    text = "run_nmae: a\nmax_duration: 9ba\ndata:\n  local: ${run_name}\n"
    assert "run.yaml:1: run_nmae" in complaint(text=text)


@pytest.mark.parametrize(
    "key", ["model.input_size", "model.num_classes", "global_train_batch_size", "data.num_workers"]
)
def test_absurd_sizes_are_refused_before_they_eat_the_memory(complaint, key: str):
    assert f"{key}: 1{'0' * 30} must be at most" in complaint(f"{key}=1{'0' * 30}")


def test_a_vae_that_is_no_folder_and_no_hub_id_is_refused(complaint):
    assert "vae.path: 'dem' is neither a folder here nor a hub id" in complaint("vae.path=dem")
