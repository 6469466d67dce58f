# SPDX-License-Identifier: Apache-2.0
"""A cell of a study -> the product's own configuration, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ahpa_scale import storage
from ahpa_scale.config.load import ConfigError, load_yaml
from ahpa_scale.config.removed import with_removed
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.errors import UserError
from experiments.datasets import DataFolder, data_folder
from experiments.recipes import VaeRecipe
from experiments.study import Cell, Overrides, Study

#: Keys that say where a run lies or how it is watched. They don't change what it computes.
_PLACES = (
    "run_name",
    "seed",
    "output_dir",
    "checkpoint",
    "sampling",
    "max_duration",
    "watch",
    "guard",
)
#: Tokens that a readout's fit needs per channel of the model, see evaluation/recoverability.py.
READOUT_TOKENS = 2
#: Keys of `parallelism` that matter. Its other keys trade memory for traffic, and compute the same.
_ENGINE = ("engine", "compile")
_DATA_PLACES = ("remote", "local", "num_workers", "predownload", "cache_limit")


@dataclass(frozen=True)
class Plan:
    """A cell, ready to run.

    Attributes:
        cell: which one.
        config: the product's configuration.
        data: its data set.
        folder: of the run: checkpoints, metrics, log.
        told: everything that the result depends on; the digest is taken over it.
    """

    cell: Cell
    config: Config
    data: DataFolder
    folder: Path
    told: dict[str, Any]

    @property
    def digest(self) -> str:
        """16 hex digits; the same for all seeds of a variant on a data set."""
        return digest_of(self.told)


def digest_of(told: Mapping[str, Any]) -> str:
    """16 hex digits of the hash of a plain structure."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class Planner:
    """Makes the plans of one study; reads each data set's input only once.

    Args:
        study: the study.
        work: folder of data sets and runs.
    """

    def __init__(self, study: Study, work: Path) -> None:
        self.study, self.work = study, work
        self._digests: dict[tuple[str, int], DataFolder] = {}

    def plan(self, cell: Cell) -> Plan:
        """Check a cell and make its plan.

        Raises:
            UserError: the cell's configuration is wrong; the line names the cell and the key.
        """
        folder = self.work / "runs" / self.study.name / str(cell)
        try:
            config = self._config(cell, folder)
        except ConfigError as error:
            problem = ": ".join(part for part in (error.key, error.problem) if part)
            raise UserError(f"{self.study.path}: cell {cell}: {problem}") from None
        self._check(cell, config)
        data = self._data(cell.dataset, config.model.geometry().grid)
        # The folder is known only now, because its name contains the grid.
        named = config.data.model_copy(update={"local": str(data.train)})
        vae = config.vae.model_copy(update={"path": data.vae})
        config = config.model_copy(update={"data": named, "vae": vae})
        return Plan(cell, config, data, folder, self._told(cell, config, data))

    def _data(self, name: str, grid: int) -> DataFolder:
        key = (name, grid)
        if key not in self._digests:
            self._digests[key] = data_folder(self.study, name, self.work, grid)
        return self._digests[key]

    def _config(self, cell: Cell, folder: Path) -> Config:
        study, recipe = self.study, self.study.datasets[cell.dataset]
        try:
            vae = recipe.vae_config()
            shared, kind = _shared(
                study.base_path, self._facts(cell.dataset, vae), recipe.overrides
            )
        except UserError as error:
            raise ConfigError("", f"datasets.{cell.dataset}", str(error)) from None
        with tempfile.TemporaryDirectory(prefix="study-") as room:
            base, architecture = Path(room) / study.base_path.name, Path(room) / "vae"
            base.write_text(shared, encoding="utf-8")
            architecture.mkdir()
            (architecture / "config.json").write_text(json.dumps(vae), encoding="utf-8")
            # Before training, only the architecture of the autoencoder is known.
            trained = isinstance(recipe.vae, VaeRecipe)
            own = {
                # Repeated here, so that the file's keys which this kind doesn't use are idled.
                "alignment.kind": kind,
                **self.study.overrides(cell),
                **_runner(study, cell, folder),
                "vae.path": str(architecture) if trained else recipe.vae,
                "data.local": str(folder),
            }
            return load_yaml(base, [f"{key}={json.dumps(value)}" for key, value in own.items()])

    def _facts(self, dataset: str, vae: Mapping[str, Any]) -> Overrides:
        """Keys that follow from the data set; the study may still override them."""
        recipe = self.study.datasets[dataset]
        return {
            "model.input_size": recipe.latent_size,
            "model.in_channels": vae["latent_channels"],
            "model.num_classes": recipe.num_classes(),
        }

    def _check(self, cell: Cell, config: Config) -> None:
        where = f"{self.study.path}: cell {cell}"
        value, unit = parse_time(config.logging.router_interval)
        if unit != "ba" or self.study.stride % value:
            raise UserError(
                f"{where}: logging.router_interval: {config.logging.router_interval!r} must be "
                f"batches that divide {self.study.stride}, so that every checkpoint sees the router"
            )
        if config.ema.decay is None:
            raise UserError(f"{where}: ema.decay: judging uses the EMA's weights; set a number")
        guided = self.study.samples.guidance_scale > 1
        if guided and (config.model.unconditional or not config.model.label_dropout):
            raise UserError(
                f"{where}: samples.guidance_scale: guidance needs classes and "
                "model.label_dropout above 0"
            )

        self._check_maps(cell, config, where)

    def _check_maps(self, cell: Cell, config: Config, where: str) -> None:
        """Find too few pictures now, and not only when the map is drawn."""
        geometry = config.model.geometry()
        least = 4 * math.ceil(READOUT_TOKENS * geometry.width / geometry.grid**2)
        for step in self.study.checkpoints:
            wanted = self.study.maps_of(cell, step)
            if wanted is None:
                continue
            heldout = self.study.datasets[cell.dataset].heldout
            if min(wanted.pictures, heldout) < least:
                raise UserError(
                    f"{where}: maps.pictures: {min(wanted.pictures, heldout)} held-out pictures "
                    f"are too few to read {geometry.width} channels; {least} are needed"
                )

    def _told(self, cell: Cell, config: Config, data: DataFolder) -> dict[str, Any]:
        told = with_removed(config.model_dump(mode="json", exclude=set(_PLACES)))
        told["data"] = {k: v for k, v in told["data"].items() if k not in _DATA_PLACES}
        told["data"]["digest"] = data.root.name.removeprefix(f"{cell.dataset}-")
        told["parallelism"] = {key: told["parallelism"][key] for key in _ENGINE}
        told["vae"] = None  # part of the data set
        told["logging"] = {"router_interval": config.logging.router_interval}
        told["samples"] = self.study.samples.model_dump(mode="json")
        told["flow_bins"] = self.study.flow_bins
        if _shares_of_the_run(told):
            told["max_duration"] = config.max_duration
        gap_map = told["alignment"]["router"].get("gap_map")
        if gap_map is not None:
            # The content of a measured map counts, not its place.
            content = storage.read_bytes(gap_map)
            told["alignment"]["router"]["gap_map"] = hashlib.sha256(content).hexdigest()[:16]
        return told


def _shared(base: Path, facts: Overrides, overrides: Overrides) -> tuple[str, str]:
    """The base YAML with the data set's own keys in it, as text, and its kind of alignment.

    They are put into the file, not on the command line, so that a variant may idle them like any
    other key of the file.
    """
    content = OmegaConf.create(base.read_text("utf-8"))
    for key, value in {**facts, **overrides}.items():
        OmegaConf.update(content, key, value, merge=False, force_add=True)
    kind = OmegaConf.select(content, "alignment.kind", default="none")
    return OmegaConf.to_yaml(content, resolve=False), str(kind)


def _runner(study: Study, cell: Cell, folder: Path) -> Overrides:
    """Keys that the runner itself sets."""
    return {
        "run_name": re.sub(r"[^A-Za-z0-9._-]", "_", f"{study.name}-{cell}"),
        "seed": cell.seed,
        "max_duration": f"{study.last}ba",
        "output_dir": str(folder),
        "checkpoint.save_folder": str(folder / "checkpoints"),
        "checkpoint.save_interval": f"{study.stride}ba",
        "checkpoint.keep": 1,
        "checkpoint.autoresume": True,
        "sampling.interval": None,
        "logging.interval": f"{math.gcd(study.stride, 25)}ba",
    }


def _shares_of_the_run(value: Any) -> bool:
    """Whether a time in it is a share of the run, so that the run's length matters."""
    if isinstance(value, dict):
        return any(_shares_of_the_run(part) for part in value.values())
    if isinstance(value, list):
        return any(_shares_of_the_run(part) for part in value)
    return isinstance(value, str) and re.fullmatch(r"[\d.]+dur", value) is not None


def difference(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """The first key that differs, in words; None where there is none.

    A key that is new in the product and has its default is no difference.
    """
    if then is None:
        return "it is not recorded beside them"
    old, new = dict(_leaves(then)), dict(_leaves(now))
    fresh = dict(_leaves(Config(run_name="x", max_duration="1ba").model_dump(mode="json")))
    for key in sorted(old.keys() | new.keys()):
        if key not in old and new[key] == fresh.get(key, object()):
            continue
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
    return None


def _leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
