# SPDX-License-Identifier: Apache-2.0
"""Keys that earlier versions had: what those have saved is still read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_run import SMALL

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.load import load_mapping, load_yaml, to_yaml
from ahpa_scale.config.removed import REMOVED, with_removed


def load(tmp_path: Path, content: dict, **options: bool):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_yaml(path, **options)


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


def test_all_checkpoints_were_written_minus_one(tmp_path: Path):
    content = yaml.safe_load(SMALL)
    content["checkpoint"] = {"save_folder": "saved", "keep": -1}
    assert load(tmp_path, content).checkpoint.keep is None
