# SPDX-License-Identifier: Apache-2.0
"""What a run writes to is tried before anything starts; a log that fails later ends no run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from job import CLI, run
from small_run import SMALL
from toy_trainer import SUMMARY, ToyGenerator, read_rows, toy_grid, toy_trainer

from ahpa_scale.config.checks.folders import check_folders
from ahpa_scale.log_files import append_line
from ahpa_scale.writable import try_to_write

KEYS = {
    "output_dir": [],
    "checkpoint.save_folder": [],
    "data.local": ["data.remote=s3://bucket/set"],
    "parallelism.offload_folder": ["parallelism.engine=zero1", "parallelism.offload=optimizer"],
}


@pytest.mark.parametrize("key", KEYS)
def test_each_place_is_tried_and_nothing_is_left_there(key: str, load, tmp_path: Path):
    places = [f"output_dir={tmp_path}/runs/a"] if key != "output_dir" else []
    config = load(*places, f"{key}={tmp_path}/new/place", *KEYS[key])
    before = sorted(tmp_path.rglob("*"))
    check_folders(config)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "new").touch()
    with pytest.raises(ValueError, match=f"{key}: .*/new/place can't be written to"):
        check_folders(config)


@pytest.mark.parametrize("command", [[sys.executable], [CLI, "launch", "--nproc", "2"]])
def test_a_run_that_can_save_nowhere_does_not_start(command, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "run.yaml").write_text(SMALL)
    saved = f"checkpoint.save_folder={tmp_path}/file/saved"
    items = [saved, f"output_dir={tmp_path}/run"]
    done = run(*command, "train.py", tmp_path / "run.yaml", *items, cold=True)
    assert done.returncode == 2
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("error: "))
    assert "checkpoint.save_folder: " in line
    assert "Not a directory" in line
    assert "launcher" not in done.stdout, "nothing was spawned"
    assert not (tmp_path / "run").exists()


def test_a_temporary_folder_too_deep_for_workers_sockets_is_refused(tmp_path: Path):
    """With it, a worker's batches are lost and the rank waits for good."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    (tmp_path / "run.yaml").write_text(SMALL)
    items = ["train.py", tmp_path / "run.yaml", f"output_dir={tmp_path}/run"]
    done = run(sys.executable, *items, environment={"TMPDIR": str(deep)})
    assert done.returncode == 2
    assert f"TMPDIR: {deep} has {len(str(deep))} characters" in done.stderr
    done = run(sys.executable, *items, "data.num_workers=0", environment={"TMPDIR": str(deep)})
    assert "TMPDIR" not in done.stderr


def test_a_link_to_nothing_is_no_folder(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(NotADirectoryError):
        try_to_write(tmp_path / "link" / "place")


def test_a_full_disk_costs_a_line_and_is_said_once(tmp_path: Path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    for _ in range(3):
        append_line(path, b"{}\n")
    assert caplog.text.count("No space left on device") == 1
    path.unlink()
    append_line(path, b"{}\n")
    assert path.read_text() == "{}\n"


class Gone:
    """Puts a file in the place of the run's folder after a batch."""

    def __init__(self, folder: Path) -> None:
        from composer.core import Callback

        class Take(Callback):
            def batch_start(self, state, logger):
                if state.timestamp.batch.value == 2:
                    folder.rename(folder.with_name("kept"))
                    folder.touch()

        self.callback = Take()


def test_a_folder_that_goes_while_training_costs_no_training(tmp_path: Path, caplog):
    from ahpa_scale.algorithms import Guard
    from ahpa_scale.callbacks import MetricsFile, RouterFigure, TensorBoard

    folder, model = tmp_path / "run", ToyGenerator(head_scale=float("nan"))
    model.attachments["alignment"].last = SUMMARY
    trainer = toy_trainer(
        "5ba",
        model=model,
        loggers=[MetricsFile(folder), TensorBoard(folder / "tensorboard")],
        algorithms=[Guard(folder)],
        callbacks=[Gone(folder).callback, RouterFigure(folder, "1ba"), toy_grid(folder)],
    )
    trainer.fit()
    trainer.close()
    assert trainer.state.timestamp.batch == 5
    assert [row["batch"] for row in read_rows(tmp_path / "kept")] == [1, 2]
    for name in ("metrics.jsonl", "guard.jsonl", "router.png", "samples", "tensorboard"):
        assert caplog.text.count(f"{folder / name} can't be written") == 1, name


def test_a_diagnosis_tries_its_place_first(tmp_path: Path):
    (tmp_path / "file").touch()
    done = run(CLI, "diagnose", tmp_path, "--data", tmp_path, "--out", tmp_path / "file" / "map")
    assert done.returncode == 2
    assert "Not a directory" in done.stderr
