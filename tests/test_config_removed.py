# SPDX-License-Identifier: Apache-2.0
"""Keys that earlier versions had: what those have saved is still read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_run import SMALL

from ahpa_scale.config.errors import ConfigError, exit_on_user_error
from ahpa_scale.config.load import load_config, load_mapping, load_yaml, to_yaml
from ahpa_scale.config.removed import REMOVED, with_removed

#: Sections as earlier versions saved them, and what they are today.
RESPELT = [
    ("ema", {"enabled": True, "decay": None, "half_life": None}, {"decay": 0.9999}),
    ("ema", {"enabled": True, "decay": 0.5, "half_life": None}, {"decay": 0.5}),
    ("ema", {"enabled": True, "decay": None, "half_life": "5ba"}, {"decay": "5ba"}),
    ("ema", {"enabled": False, "decay": None, "half_life": None}, {"decay": None}),
    ("logging", {"wandb": False, "wandb_project": None}, {"wandb": None}),
    ("logging", {"wandb": True, "wandb_project": "p"}, {"wandb": "p"}),
    ("logging", {"wandb": True, "wandb_project": None}, {"wandb": "uncategorized"}),
    ("alignment", {"until": "50ba", "ramp": "5ba", "release": None}, {"until": "50ba"}),
    ("alignment", {"release": {"ramp": "3ba"}}, {"until": "measured", "ramp": "3ba"}),
    ("alignment", {"release": {}}, {"until": "measured", "ramp": "0.125dur"}),
    ("checkpoint", {"save_folder": "saved", "keep": -1}, {"keep": None}),
]


def load(tmp_path: Path, content: dict, *overrides: str, **options: bool):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_yaml(path, overrides, **options)


@pytest.fixture
def saved(tmp_path: Path) -> dict:
    """The whole configuration of a run, as an earlier version saved it."""
    content = {**yaml.safe_load(SMALL), "alignment": {"kind": "ahpa"}}
    return with_removed(yaml.safe_load(to_yaml(load(tmp_path, content))))


def test_a_configuration_of_an_earlier_version_is_the_same_run(tmp_path: Path):
    now = load(tmp_path, yaml.safe_load(SMALL))
    saved = with_removed(yaml.safe_load(to_yaml(now)))
    assert saved["alignment"]["router"]["hidden"] == 256
    for config in (load(tmp_path, saved), load_mapping(saved)):
        assert config.model_dump() == now.model_dump()


@pytest.mark.parametrize("key", REMOVED)
def test_a_value_that_is_no_more_is_refused_or_told(tmp_path: Path, capsys, key: str):
    content = yaml.safe_load(SMALL)
    content["alignment"] = {"kind": "ahpa"}
    section = content
    for name in key.split(".")[:-1]:
        section = section.setdefault(name, {})
    section[key.split(".")[-1]] = 7
    line = f"{key}.* is no key any more: it is always .*, and 7 was asked for"
    with pytest.raises(ConfigError, match=line):
        load(tmp_path, content)
    assert load(tmp_path, content, elsewhere=True)
    assert f"{key} is no key any more" in capsys.readouterr().err


@pytest.mark.parametrize(("section", "then", "now"), RESPELT)
def test_what_a_run_saved_means_what_it_meant(tmp_path: Path, saved, section, then, now):
    saved[section] = {**saved[section], **then}
    for config in (
        load(tmp_path, saved),
        load(tmp_path, saved, elsewhere=True),
        load_mapping(saved),
    ):
        told = config.model_dump()[section]
        assert {name: told[name] for name in now} == now
        assert not then.keys() - now.keys() & told.keys() - {"until", "ramp", "save_folder"}
        assert load(tmp_path, yaml.safe_load(to_yaml(config))) == config


def test_the_command_line_stands_above_what_a_run_saved(tmp_path: Path, saved):
    saved["ema"] |= {"enabled": True, "decay": None, "half_life": None}
    saved["logging"] |= {"wandb": True, "wandb_project": "p"}
    saved["alignment"]["release"] = {"ramp": "3ba"}
    assert load(tmp_path, saved, "ema.decay=null").ema.decay is None
    assert load(tmp_path, saved, "logging.wandb=q").logging.wandb == "q"
    assert load(tmp_path, saved, "logging.wandb=null").logging.wandb is None
    assert load(tmp_path, saved, "alignment.until=null").alignment.until is None


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("ema.enabled=false", "ema.decay=null"),
        ("ema.half_life=5ba", "ema.decay=5ba"),
        ("ema={enabled: false}", "ema.decay=null"),
        ("logging.wandb_project=p", "logging.wandb=p"),
        ("alignment.release={}", "alignment.until=measured alignment.ramp=0.125dur"),
        ("alignment.release.ramp=3ba", "alignment.until=measured alignment.ramp=3ba"),
    ],
)
def test_a_new_run_is_told_what_to_write(tmp_path: Path, saved, capsys, words: str, advice: str):
    path, new = tmp_path / "run.yaml", SMALL + "alignment: {kind: ahpa}\n"
    for content in (new, yaml.safe_dump(saved)):
        path.write_text(content)
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            load_config([str(path), words])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "command line: " in line
        assert line.endswith(f"is no key any more: write {advice}")
    path.write_text(new)
    load_config([str(path), *advice.split()])


def test_a_new_yaml_is_told_as_well(tmp_path: Path):
    content = {**yaml.safe_load(SMALL), "logging": {"wandb": True, "wandb_project": "p"}}
    with pytest.raises(ConfigError, match=r"is no key any more: write logging.wandb=p$"):
        load(tmp_path, content)
    content["logging"] = {"wandb": True}
    assert load(tmp_path, content).logging.wandb == "uncategorized"
    content["checkpoint"] = {"save_folder": "saved", "keep": -1}
    assert load(tmp_path, content).checkpoint.keep is None


def test_two_ends_of_an_alignment_can_not_be_kept(tmp_path: Path, saved, capsys):
    saved["alignment"] |= {"until": "50ba", "release": {"ramp": "3ba"}}
    with pytest.raises(ConfigError, match=r"alignment.release: .*both were asked for"):
        load(tmp_path, saved)
    assert load(tmp_path, saved, elsewhere=True).alignment.until == "50ba"
    assert "alignment.release is no key any more" in capsys.readouterr().err


def test_interpolations_move_with_their_key(tmp_path: Path, saved, monkeypatch):
    saved["ema"] |= {"decay": None, "half_life": "${oc.env:AHPA_TEST_HALF_LIFE}"}
    saved["logging"] |= {"wandb": True, "wandb_project": "${oc.env:AHPA_TEST_PROJECT}"}
    saved["alignment"] |= {"release": {"ramp": "${oc.env:AHPA_TEST_RAMP,4ba}"}}
    saved["guard"]["patience"] = "${oc.decode:'10'}"
    inspected = load(tmp_path, saved, elsewhere=True)
    assert inspected.ema.decay == 0.9999, "what is not known here takes its default"
    monkeypatch.setenv("AHPA_TEST_HALF_LIFE", "7ba")
    monkeypatch.setenv("AHPA_TEST_PROJECT", "p")
    config = load(tmp_path, saved)
    assert (config.ema.decay, config.logging.wandb, config.alignment.ramp) == ("7ba", "p", "4ba")
    told = yaml.safe_load(to_yaml(config))
    assert told["ema"] == {"decay": "${oc.env:AHPA_TEST_HALF_LIFE}"}
    assert told["logging"]["wandb"] == "${oc.env:AHPA_TEST_PROJECT}"
    assert told["alignment"]["ramp"] == "${oc.env:AHPA_TEST_RAMP,4ba}"
    assert "patience" not in told["guard"]
    assert load(tmp_path, told) == config


def test_the_project_reaches_wandb(tmp_path: Path):
    from composer.loggers import WandBLogger

    from ahpa_scale.models.dit import build_dit
    from ahpa_scale.run.checkpoints import Start
    from ahpa_scale.run.loggers import build_loggers

    dit = build_dit("tiny/2", input_size=4, num_classes=3)
    seen = []
    for project in (None, "p", True):
        content = {**yaml.safe_load(SMALL), "logging": {"wandb": project}}
        content["output_dir"] = str(tmp_path / "run")
        loggers = build_loggers(load(tmp_path, content), Start(), {"wandb": "id"}, dit, None)
        seen.append([one.project for one in loggers if isinstance(one, WandBLogger)])
    assert seen == [[], ["p"], [None]], "none, the one named, wandb's own choice"
