# SPDX-License-Identifier: Apache-2.0
"""A finished toy run's checkpoints, ways to damage them, and the commands that look after them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ahpa_scale.cli import main

BATCHES = (1, 2, 3, 4, 5, 6)
RANK_0 = "rank00000.safetensors"


class ToyRun:
    """A finished toy run, and what its averages and weights were."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder = folder
        from toy_trainer import toy_trainer

        from ahpa_scale.algorithms import EMA
        from ahpa_scale.checkpoint.saver import Saver

        trainer = toy_trainer("6ba", callbacks=[Saver(str(folder), "1ba")], **options)
        trainer.fit()
        self.trained = {
            n: p.detach().clone() for n, p in trainer.state.model.dit.named_parameters()
        }
        emas = [one for one in trainer.state.algorithms if isinstance(one, EMA)]
        shadows = emas[0].shadow.items() if emas else ()
        self.averages = {n.removeprefix("dit."): p.clone() for n, p in shadows}
        trainer.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> ToyRun:
    from ahpa_scale.algorithms import EMA

    return ToyRun(tmp_path_factory.mktemp("run") / "checkpoints", algorithms=[EMA(half_life="2ba")])


@pytest.fixture
def folder(finished: ToyRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "checkpoints"))


@pytest.fixture
def cli(capfd):
    """Runs a command: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["checkpoints", *map(str, words)])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_all(folder: Path) -> None:
    """Damages ba2 to ba6, each in another way."""
    flip(folder / "ba2" / RANK_0)
    truncate(folder / "ba3" / RANK_0)
    (folder / "ba4" / "state.json").unlink()
    (folder / "ba5" / "manifest.json").unlink()
    flip(folder / "ba6" / "manifest.json")


def verdicts(out: str) -> dict[str, str]:
    """The table's last column, by name."""
    rows = [line.lstrip("* ").split("  ") for line in out.splitlines()]
    return {row[0].strip(): row[-1].strip() for row in rows if row[0].startswith("ba")}
