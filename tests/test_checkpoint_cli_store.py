# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale checkpoints` on a real S3 server."""

from __future__ import annotations

import pytest
from checkpoint_runs import RANK_0, damage_all, verdicts
from s3_server import BUCKET, S3Server, s3_server
from safetensors.torch import load_file

from ahpa_scale import storage
from ahpa_scale.checkpoint.manifest import FileEntry, Manifest, entry_of
from ahpa_scale.commands import reading


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def test_all_of_it_in_an_object_store(s3: S3Server, folder, cli, tmp_path, finished):
    client = s3.client()
    url = f"s3://{BUCKET}/cli/run"

    def upload() -> None:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            key = f"cli/run/{path.relative_to(folder).as_posix()}"
            client.upload_file(str(path), BUCKET, key)

    upload()
    code, out, _ = cli("ls", url)
    assert code == 0
    assert set(verdicts(out).values()) == {"whole"}
    assert cli("verify", url)[0] == 0
    damage_all(folder)
    upload()
    for key in ("ba4/state.json", "ba5/manifest.json"):
        client.delete_object(Bucket=BUCKET, Key=f"cli/run/{key}")
    code, remote, _ = cli("verify", url)
    assert code == 1
    assert verdicts(remote) == verdicts(cli("verify", folder)[1])
    assert f"{RANK_0} isn't what was saved" in verdicts(remote)["ba2"]
    code, said, err = cli("pull", url, tmp_path / "copy")
    assert code == 0
    assert f"{url}/ba1" in said
    assert f"stepping over {url}/ba2" in err
    there = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert there == {path.name: path.read_bytes() for path in (finished.folder / "ba1").iterdir()}
    exported = tmp_path / "dit.safetensors"
    assert cli("export", f"{url}/ba1", exported)[0] == 0
    assert load_file(exported).keys() == finished.trained.keys()
    code, said, _ = cli("prune", url, "--keep", "1")
    assert code == 0
    assert "0 removed, 6 left, the newest whole is ba1" in said
    # ba3 is made whole again, so that ba1 and the damaged ba2 may go.
    client.upload_file(str(finished.folder / "ba3" / RANK_0), BUCKET, f"cli/run/ba3/{RANK_0}")
    code, said, _ = cli("prune", url, "--keep", "1")
    assert code == 0
    assert "2 removed, 4 left, the newest whole is ba3" in said
    names = {key.split("/")[2] for key in s3.keys("cli/run/ba")}
    assert names == {"ba3", "ba4", "ba5", "ba6"}


def test_progress_of_a_download(s3: S3Server, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(reading, "_LONG", 1)
    content = bytes(9_000_000)
    (tmp_path / "part").write_bytes(content)
    files: dict[str, FileEntry] = {RANK_0: entry_of(tmp_path / "part")}
    manifest = Manifest(7, 28, 0, "2026-01-01T00:00:00", "a", "ddp", 1, {}, None, {}, {}, files)
    client = s3.client()
    client.put_object(Bucket=BUCKET, Key=f"large/ba7/{RANK_0}", Body=content)
    text = manifest.to_json().encode()
    client.put_object(Bucket=BUCKET, Key="large/ba7/manifest.json", Body=text)
    code, _, err = cli("verify", f"s3://{BUCKET}/large")
    assert code == 0
    assert "verifying: 100%" in err
    assert "9/9" in err
    told: list[int] = []
    storage.get_file(f"s3://{BUCKET}/large/ba7/{RANK_0}", tmp_path / "again", told.append)
    assert told == sorted(told)
    assert told[-1] == len(content)
    assert len(told) > 2, "a large file shows no progress on its way"
