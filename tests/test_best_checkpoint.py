# SPDX-License-Identifier: Apache-2.0
"""The note of the best checkpoint, through a Trainer's saver and the folder that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_trainer import newest, toy_trainer

from ahpa_scale.checkpoint.best import BEST, Best, Contest, read_best
from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.retention import Retention, prune
from ahpa_scale.checkpoint.saver import Saver


class Measured(Saver):
    """A saver that is told each batch's value just before it saves, as the callback does."""

    def __init__(self, folder: Path, values: dict[int, float], **options) -> None:
        self.values, self.told = values, options.pop("settings", "a")
        self.contest = Contest()
        super().__init__(str(folder), "1ba", contest=self.contest, **options)

    def batch_end(self, state, logger):
        del logger
        batch = state.timestamp.batch.value
        if batch in self.values:
            self.contest.offer(Best(batch, self.values[batch], "heldout/flow", self.told))


def trained(folder: Path, values: dict[int, float], batches: int = 6, **options) -> list[str]:
    start = [newest(folder)] if folder.exists() else []
    saver = Measured(folder, values, retention=Retention(1), **options)
    trainer = toy_trainer(f"{batches}ba", callbacks=[*start, saver])
    trainer.fit()
    trainer.close()
    return names(folder)


def names(folder: Path) -> list[str]:
    return [each.name + "!" * each.best for each in list_checkpoints(str(folder))]


def test_the_lowest_value_stays_with_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    values = {1: 3.0, 2: 1.5, 3: 2.0, 5: 1.5}
    assert trained(folder, values) == ["ba2!", "ba6"], "of equal ones the first"
    assert read_best(str(folder)) == Best(2, 1.5, "heldout/flow", "a")
    # Another process goes on, knowing nothing but the note.
    assert trained(folder, {7: 1.6, 8: 1.4}, 9) == ["ba8!", "ba9"]
    assert trained(folder, {10: 1.45}, 11) == ["ba8!", "ba11"]


def test_values_that_can_not_be_compared_begin_anew(tmp_path):
    folder = tmp_path / "checkpoints"
    assert trained(folder, {2: 1.0}, 3) == ["ba2!", "ba3"]
    assert trained(folder, {4: 9.0}, 5, settings="other data") == ["ba4!", "ba5"]
    assert trained(folder, {6: float("nan")}, 7, settings="other data") == ["ba4!", "ba7"]


def test_a_note_never_outlives_its_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    trained(folder, {2: 1.0}, 3)
    (folder / "ba2" / "manifest.json").unlink()
    assert trained(folder, {4: 5.0}, 5)[-2:] == ["ba4!", "ba5"]
    (folder / "ba4" / "manifest.json").unlink()
    trained(folder, {}, 6)
    assert not (folder / BEST).exists()


def test_a_measurement_at_an_epochs_end_still_counts(tmp_path):
    folder, contest = str(tmp_path), Contest()
    for batch in (1, 2):
        (tmp_path / f"ba{batch}").mkdir()
        (tmp_path / f"ba{batch}" / "manifest.json").write_text("{}")
        contest.settle(folder, batch)
        contest.offer(Best(batch, float(batch), "heldout/flow", "a"))
    assert read_best(folder) == Best(1, 1.0, "heldout/flow", "a")


@pytest.mark.parametrize(
    "note",
    [
        *("", "{", '{"batch": 2}', "x" * 100_000),
        '{"batch": -1, "value": 1.0, "measure": "m", "settings": "s"}',
        '{"batch": 2, "value": NaN, "measure": "m", "settings": "s"}',
    ],
)
def test_a_damaged_note_is_none(tmp_path, note, caplog):
    folder = tmp_path / "checkpoints"
    trained(folder, {2: 1.0}, 3)
    (folder / BEST).write_text(note)
    assert names(folder) == ["ba2", "ba3"]
    assert "checkpoints: " in caplog.text
    assert prune(str(folder), Retention(1)) == ["ba2"]


def test_a_note_is_one_line_of_json(tmp_path):
    folder = tmp_path / "checkpoints"
    trained(folder, {1: 0.25}, 2)
    told = json.loads((folder / BEST).read_text())
    assert told == {"batch": 1, "value": 0.25, "measure": "heldout/flow", "settings": "a"}
