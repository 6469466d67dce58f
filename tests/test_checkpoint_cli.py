# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale checkpoints ls` and `verify`, on checkpoints damaged in every way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_runs import BATCHES, RANK_0, damage_all, flip, verdicts
from job import CLI, run

from ahpa_scale import storage
from ahpa_scale.checkpoint.manifest import Manifest, entry_of


def test_ls_shows_what_a_manifest_tells(folder, cli):
    code, out, err = cli("ls", folder)
    header, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert [row.split()[0] for row in rows] == ["ba1", "ba2", "ba3", "ba4", "ba5", "*"]
    for word in ("name", "batches", "images", "size", "created (UTC)", "saved by", "verdict"):
        assert word in header
    assert rows[5].split()[:4] == ["*", "ba6", "6", "24"]
    assert "kB" in rows[5]
    assert "ddp x 1" in rows[5]
    assert set(verdicts(out).values()) == {"whole"}
    manifest = Manifest.from_json((folder / "ba6/manifest.json").read_text())
    assert manifest.created[:10] in rows[5]
    ends = {row.rindex("whole") for row in rows}
    assert ends == {header.index("verdict")}, "the columns are not below one another"


def test_ls_sees_what_names_and_sizes_tell(folder, cli):
    damage_all(folder)
    code, out, _ = cli("ls", folder)
    assert code == 0
    size = (folder / "ba3" / RANK_0).stat().st_size
    assert verdicts(out) == {
        "ba1": "whole",
        "ba2": "whole",  # a flipped bit has no size
        "ba3": f"damaged: {RANK_0} has {size} bytes instead of {size + 1}",
        "ba4": "damaged: state.json is missing",
        "ba5": "half an upload",
        "ba6": "damaged: manifest.json is damaged",
    }
    assert [line.split()[1] for line in out.splitlines() if line.startswith("*")] == ["ba2"]


def test_ls_json_is_one_object_a_line(folder, cli):
    damage_all(folder)
    code, out, _ = cli("ls", folder, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["batch"] for row in rows] == list(BATCHES)
    assert [row["newest"] for row in rows] == [False, True, False, False, False, False]
    files = sum(path.stat().st_size for path in (folder / "ba1").iterdir())
    wanted = {"images": 4, "bytes": files, "engine": "ddp", "ranks": 1, "verdict": "whole"}
    assert rows[0] | wanted == rows[0]
    assert rows[0]["url"] == str(folder / "ba1")
    assert rows[4] | {"verdict": "half an upload", "images": None} == rows[4]
    assert rows[5]["problem"] == "manifest.json is damaged"


def test_ls_of_one_checkpoint(folder, cli):
    assert list(verdicts(cli("ls", folder / "ba3")[1])) == ["ba3"]
    (folder / "ba3/manifest.json").unlink()
    assert verdicts(cli("ls", f"file://{folder}/ba3")[1]) == {"ba3": "half an upload"}


@pytest.mark.parametrize("words", [("ls",), ("verify",), ("pull", "to"), ("prune", "--keep", "1")])
def test_where_nothing_is_there_is_one_line_that_says_so(words, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *rest = words
    place = tmp_path / "empty"
    code, out, err = cli(name, place, *rest)
    assert (code, out, err) == (2, "", f"error: there is no checkpoint at {place}\n")
    assert not Path("to").exists()


def test_the_folder_above_is_told_of_the_one_below(folder, cli):
    code, _, err = cli("ls", folder.parent)
    assert code == 2
    assert err.endswith(f"there are some in {folder}\n")


def test_an_unknown_store_is_one_line(cli):
    code, _, err = cli("ls", "nosuch://bucket/x")
    assert code == 2
    assert err.startswith("error: URL: unknown storage scheme nosuch://")
    assert err.count("\n") == 1


def test_verify_tells_whole_damaged_and_half(folder, cli):
    assert cli("verify", folder)[0] == 0
    damage_all(folder)
    code, out, _ = cli("verify", folder)
    assert code == 1
    seen = verdicts(out)
    assert seen["ba1"] == "whole"
    assert seen["ba2"] == f"damaged: {RANK_0} isn't what was saved"
    assert seen["ba3"].startswith(f"damaged: {RANK_0} has ")
    assert seen["ba4"] == "damaged: state.json is missing"
    assert seen["ba5"] == "half an upload"
    assert seen["ba6"] == "damaged: manifest.json is damaged"
    assert out.endswith("1 whole, 4 damaged, 1 half an upload; newest whole one: ba1\n")


def test_verify_names_every_damaged_file(folder, cli):
    flip(folder / "ba4" / RANK_0)
    flip(folder / "ba4/state.json")
    code, out, _ = cli("verify", folder / "ba4")
    assert code == 1
    assert RANK_0 in out
    assert "state.json" in out


def test_half_an_upload_is_no_damage_but_no_checkpoint_either(folder, cli):
    (folder / "ba6/manifest.json").unlink()
    code, out, _ = cli("verify", folder)
    assert code == 0
    assert out.endswith("5 whole, 1 half an upload; newest whole one: ba5\n")
    assert cli("verify", folder / "ba6")[0] == 1


def test_what_a_run_removes_or_saves_anew_meanwhile_is_no_damage(folder, cli, monkeypatch):
    look = storage.local_path

    def slow(url):
        # As if the run's retention were at work just before the file is opened.
        if str(url) == str(folder / "ba1" / RANK_0):
            shutil.rmtree(folder / "ba1")
        if str(url) == str(folder / "ba2" / RANK_0):
            shutil.copytree(folder / "ba5", folder / "ba2", dirs_exist_ok=True)
        return look(url)

    monkeypatch.setattr(storage, "local_path", slow)
    code, out, _ = cli("verify", folder)
    assert code == 0
    seen = verdicts(out)
    assert seen["ba1"] == seen["ba2"] == "removed or saved anew while it was read"


def test_long_work_shows_its_rate(tmp_path, cli, monkeypatch):
    big = tmp_path / "ba7" / RANK_0
    big.parent.mkdir()
    big.write_bytes(bytes(40_000_000))
    files = {RANK_0: entry_of(big)}
    manifest = Manifest(7, 28, 0, "2026-01-01T00:00:00", "a", "ddp", 1, {}, None, {}, {}, files)
    (big.parent / "manifest.json").write_text(manifest.to_json())
    code, out, err = cli("verify", tmp_path)
    assert code == 0
    assert verdicts(out) == {"ba7": "whole"}
    assert "verifying: 100%" in err
    assert "40/40" in err
    assert "MB/s" in err
    assert cli("verify", tmp_path, "--no-progress")[2] == ""


def test_a_manifest_cannot_lead_a_copy_out_of_its_folder(folder, cli, tmp_path):
    planted = Manifest.from_json((folder / "ba6/manifest.json").read_text())
    (folder / "escaped").write_text("x")
    planted.files["../escaped"] = entry_of(folder / "escaped")
    (folder / "ba6/manifest.json").write_text(planted.to_json())
    code, _, err = cli("pull", folder / "ba6", tmp_path / "deep/er")
    assert code == 2
    assert "names '../escaped', which is no file's name" in err
    assert not (tmp_path / "deep/escaped").exists()


def test_as_a_program(folder):
    done = run(CLI, "checkpoints", "verify", folder)
    assert done.returncode == 0, done.stderr
    flip(folder / "ba6" / RANK_0)
    done = run(CLI, "checkpoints", "verify", folder)
    assert done.returncode == 1
    assert verdicts(done.stdout)["ba6"].startswith("damaged")
    done = run(CLI, "checkpoints", "--help")
    for name in ("ls", "verify", "pull", "prune", "export"):
        assert f" {name} " in done.stdout


def test_help_and_looking_need_neither_torch_nor_composer(folder):
    script = (
        "import sys; from ahpa_scale.cli import main\n"
        "try: main(['checkpoints', 'verify', sys.argv[1]])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'composer', 'fsspec'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=600)
