# SPDX-License-Identifier: Apache-2.0
"""A user id without a name or a home folder: what names its caches after them does not fail."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from pathlib import Path

import pytest

from ahpa_scale import cli
from ahpa_scale.account import settle_account

NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
CACHES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_HOME", "WANDB_CONFIG_DIR")
NOBODY = 54321


def as_nobody(answer: Path) -> None:
    """Runs in a process of its own: what that user finds after the command line has begun."""
    for name in (*NAMES, *CACHES, "TORCHINDUCTOR_CACHE_DIR"):
        os.environ.pop(name, None)
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        cli.main(["--help"])
    except SystemExit:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        told = {name: os.environ.get(name) for name in (*NAMES, *CACHES)}
        answer.write_text(json.dumps(told | {"user": getpass.getuser(), "torch": cache_dir()}))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_has_caches(tmp_path, monkeypatch):
    # The folder that pytest made is its user's alone.
    with tempfile.TemporaryDirectory() as room:
        os.chmod(room, 0o777)
        monkeypatch.setattr(tempfile, "tempdir", room)
        answer = Path(room, "answer.json")
        child = os.fork()
        if child == 0:
            try:
                as_nobody(answer)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        told = json.loads(answer.read_text())
        assert told["user"] == told["USER"] == f"uid-{NOBODY}"
        assert told["torch"].endswith(f"torchinductor_uid-{NOBODY}")
        private = Path(room, f"ahpa-scale-uid-{NOBODY}")
        assert all(told[name].startswith(str(private)) for name in CACHES)
        assert private.stat().st_mode & 0o777 == 0o700
        assert private.stat().st_uid == NOBODY


def test_a_user_with_a_home_folder_keeps_all_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    settle_account()
    assert dict(os.environ) == before


def test_a_folder_that_others_write_to_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/mine")
    for name in CACHES[1:]:
        monkeypatch.delenv(name, raising=False)
    planted = tmp_path / f"ahpa-scale-uid-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    settle_account()
    assert os.environ["XDG_CACHE_HOME"] == "/mine"
    for name in CACHES[1:]:
        assert not Path(os.environ[name]).is_relative_to(planted)
        assert Path(os.environ[name]).is_relative_to(tmp_path)
