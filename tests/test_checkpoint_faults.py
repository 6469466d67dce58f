# SPDX-License-Identifier: Apache-2.0
"""Stores that fail while a run saves or is taken up again: it goes on exactly, or says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_stores import Files
from fault_proxy import ALWAYS, FaultProxy, Faults
from faulty_store import PART, Outcome, assert_same, fill, resumed, saved, warnings_of
from s3_server import free_ports
from toy_trainer import toy_trainer

from ahpa_scale import storage
from ahpa_scale.checkpoint import local_copy
from ahpa_scale.checkpoint.errors import CheckpointError, StoreAwayError
from ahpa_scale.checkpoint.local_copy import open_newest
from ahpa_scale.checkpoint.saver import Saver
from ahpa_scale.checkpoint.writer import Writer
from ahpa_scale.unreachable import UnreachableError

RANK, STATE, MANIFEST = "rank00000.safetensors", "state.json", "manifest.json"
#: Of these at least four of the first thirty requests fail.
SEEDS = (4, 5, 7, 9)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_tenth_request_failing_changes_nothing(
    seed: int, proxy: FaultProxy, url: str, whole: Outcome, tmp_path: Path
):
    proxy.set(Faults(share=0.1), seed=seed)
    outcome = saved(url)
    assert outcome.saver is not None
    assert outcome.saver.last_saved_batch == PART
    again = resumed(url, tmp_path)
    failed = proxy.counts.total() - proxy.counts["requests"]
    assert failed >= 2, "nothing failed, so nothing is tested"
    assert again.first == PART
    assert_same(again, whole)


@pytest.mark.parametrize("kind", ["500", "503", "cut", "lost"])
def test_a_third_of_the_requests_failing_in_one_way_changes_nothing(
    kind: str, proxy: FaultProxy, url: str, whole: Outcome, tmp_path: Path
):
    proxy.set(Faults(share=0.33, kinds=(kind,)), seed=5)
    saved(url)
    again = resumed(url, tmp_path)
    assert proxy.counts[kind] >= 5
    assert again.first == PART
    assert_same(again, whole)


def test_an_upload_cut_in_its_middle_is_tried_again(
    proxy: FaultProxy,
    url: str,
    whole: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    proxy.set(Faults(cut_uploads=3, uploads=RANK))
    saved(url)
    assert proxy.counts["cut upload"] == 3
    assert f"{url}/ba2/{RANK}" in warnings_of(caplog.records)
    again = resumed(url, tmp_path)
    assert again.first == PART
    assert_same(again, whole)


def test_a_save_that_fails_is_told_and_the_run_goes_on(
    proxy: FaultProxy,
    url: str,
    whole: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(storage.PATIENCE, "1")
    proxy.set(Faults(cut_uploads=ALWAYS, uploads=f"ba4/{RANK}"))
    outcome = saved(url)
    told = warnings_of(caplog.records)
    assert "ba4 was not saved" in told
    assert f"{url}/ba4/{RANK}" in told
    assert outcome.saver is not None
    assert outcome.saver.last_saved_batch == PART
    again = resumed(url, tmp_path)
    assert again.first == PART
    assert_same(again, whole)


def test_the_last_save_must_succeed_and_the_one_before_is_taken_up(
    proxy: FaultProxy,
    url: str,
    whole: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(storage.PATIENCE, "1")
    proxy.set(Faults(cut_uploads=ALWAYS, uploads=f"ba6/{RANK}"))
    with pytest.raises(StoreAwayError, match=f"ba6 was not saved.*ba6/{RANK}"):
        saved(url)
    proxy.set()
    again = resumed(url, tmp_path)
    assert again.first == 4
    assert_same(again, whole)


def test_a_save_cut_before_its_manifest_is_stepped_over(
    proxy: FaultProxy,
    url: str,
    whole: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(storage.PATIENCE, "1")
    proxy.set(Faults(cut_uploads=ALWAYS, uploads=f"ba6/{MANIFEST}", cut_after=100))
    with pytest.raises(CheckpointError, match=f"ba6/{MANIFEST}"):
        saved(url)
    proxy.set()
    again = resumed(url, tmp_path)
    assert f"{url}/ba6 is half an upload ({MANIFEST} is missing)" in warnings_of(caplog.records)
    assert again.first == 4
    assert_same(again, whole)


def test_an_unreachable_store_is_an_error_that_names_it(
    proxy: FaultProxy, url: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(url, files)
    (port,) = free_ports(1)
    monkeypatch.setenv(storage.PATIENCE, "1")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(UnreachableError, match=url) as caught:
        open_newest(url, tmp_path)
    assert str(port) in str(caught.value)


def test_a_store_that_goes_away_while_fetching_is_no_reason_to_step_back(
    proxy: FaultProxy, url: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(url, files)
    monkeypatch.setenv(storage.PATIENCE, "1")

    def fetch_from_nowhere(found, folder):
        proxy.set(Faults(share=1.0))
        return real(found, folder)

    real = local_copy.fetch
    monkeypatch.setattr(local_copy, "fetch", fetch_from_nowhere)
    with pytest.raises(UnreachableError, match=f"/ba6/{RANK}"):
        open_newest(url, tmp_path)
    assert not list(tmp_path.glob("ba*")), "a part of the copy is left"


def test_a_fault_of_the_writing_thread_ends_the_run_as_what_it_is(tmp_path: Path, monkeypatch):
    """The other ranks' threads would wait for this one's part, and their runs for them."""

    def fall_over(*_: object) -> None:
        raise RuntimeError("the writer fell over")

    monkeypatch.setattr(Writer, "write", fall_over)
    trainer = toy_trainer("40ba", callbacks=Saver(str(tmp_path), "2ba"))
    with pytest.raises(RuntimeError, match="the writer fell over") as raised:
        trainer.fit()
    assert type(raised.value) is RuntimeError
    assert trainer.state.timestamp.batch.value < 40


@pytest.mark.parametrize("name", [RANK, STATE, MANIFEST])
def test_a_file_that_the_connection_spoils_is_fetched_again_before_the_run_steps_back(
    name: str,
    proxy: FaultProxy,
    url: str,
    files: Files,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    fill(url, files)
    proxy.set(Faults(spoiled_downloads=1, downloads=f"ba6/{name}"))
    copy = open_newest(url, tmp_path)
    assert proxy.counts["spoiled download"] == 1
    assert copy is not None
    assert copy.url == f"{url}/ba6"
    assert warnings_of(caplog.records) == ""
