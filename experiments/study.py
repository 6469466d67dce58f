# SPDX-License-Identifier: Apache-2.0
"""A study's YAML: variants x data sets x seeds x checkpoints, read strictly. Free of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PrivateAttr, ValidationError

from ahpa_scale import storage
from ahpa_scale.config.errors import choices, nearest, one_line
from ahpa_scale.config.schema.fields import List, Section
from ahpa_scale.errors import UserError
from experiments.recipes import DemoRecipe, FashionRecipe, FolderRecipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@=+-]*")
#: Key of a variant that holds its overrides for single data sets.
FOR = "for"

Overrides = dict[str, Any]
Recipe = Annotated[DemoRecipe | FashionRecipe | FolderRecipe, Field(discriminator="recipe")]
Step = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a study."""

    dataset: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.variant}/{self.seed}"


class Samples(Section):
    """How a checkpoint's pictures are drawn for judging: fixed noise, the same for every cell."""

    count: int = Field(2500, ge=64, description="Pictures.")
    steps: int = Field(25, ge=1, description="Steps of the sampler.")
    method: Literal["euler", "heun", "sde"] = Field("heun", description="Sampler.")
    guidance_scale: float = Field(1.0, ge=1, description="Classifier-free guidance; 1: none.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")


class Choice(Section):
    """Cells picked out of the product; a key that is None takes all."""

    dataset: str | None = None
    variant: str | None = None
    seeds: List[Seed] | None = None

    def takes(self, cell: Cell) -> bool:
        """Whether the choice contains the cell."""
        return (
            self.dataset in (None, cell.dataset)
            and self.variant in (None, cell.variant)
            and (self.seeds is None or cell.seed in self.seeds)
        )


class Maps(Section):
    """For which runs recoverability maps are drawn, and from which levels and pictures."""

    variant: str
    dataset: str | None = None
    seeds: List[Seed] | None = None
    steps: List[Step] | None = Field(None, description="null: the last checkpoint.")
    levels: List[str] | None = Field(None, description="null: all that the training set stores.")
    pictures: int = Field(1024, ge=8, description="Held-out pictures.")

    def takes(self, cell: Cell, step: int, last: int) -> bool:
        """Whether a map of this run's checkpoint is wanted."""
        chosen = Choice(dataset=self.dataset, variant=self.variant, seeds=self.seeds)
        return chosen.takes(cell) and step in (self.steps or (last,))


class Study(Section):
    """The whole file."""

    name: str
    base: str = Field(description="Training YAML that all runs share, beside the study or here.")
    seeds: List[Seed]
    checkpoints: List[Step]
    datasets: dict[str, Recipe]
    variants: dict[str, Overrides]
    only: Annotated[tuple[Choice, ...], Field(strict=False)] = ()
    samples: Samples = Samples()
    flow_bins: int = Field(10, ge=1, le=100, description="t-bins of the held-out flow loss.")
    maps: Annotated[tuple[Maps, ...], Field(strict=False)] = ()
    verdicts: Any = Field(None, description="Read by the report.")

    _path: Path = PrivateAttr(default_factory=Path)

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    @property
    def base_path(self) -> Path:
        """The shared training YAML."""
        beside = self.path.parent / self.base
        return beside if beside.exists() else storage.local_path(self.base)

    @property
    def last(self) -> int:
        """Batches of a whole run."""
        return self.checkpoints[-1]

    @property
    def stride(self) -> int:
        """Batches between two saved checkpoints; all judged checkpoints are saved ones."""
        return math.gcd(*self.checkpoints)

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """The runs: first all with the first seed, then all with the second, and so on.

        Args:
            only: patterns ``dataset/variant/seed``, any part ``*``; () takes all.

        Raises:
            UserError: no run fits a pattern.
        """
        every = [
            Cell(dataset, variant, seed)
            for seed in self.seeds
            for variant in self.variants
            for dataset in self.datasets
        ]
        every = [c for c in every if not self.only or any(choice.takes(c) for choice in self.only)]
        if not only:
            return every
        chosen: set[Cell] = set()
        for pattern in only:
            fitting = {cell for cell in every if _fits(cell, pattern)}
            if not fitting:
                raise UserError(f"--only {pattern}: {choices(pattern, map(str, every))}")
            chosen |= fitting
        return [cell for cell in every if cell in chosen]

    def wanted(self, cell: Cell) -> set[tuple[str, int]]:
        """The rows that a cell must have: kind and checkpoint."""
        runs = {("run", step) for step in self.checkpoints}
        return runs | {("map", step) for step in self.checkpoints if self.maps_of(cell, step)}

    def maps_of(self, cell: Cell, step: int) -> Maps | None:
        """The first entry of `maps` that wants this run's checkpoint."""
        return next((maps for maps in self.maps if maps.takes(cell, step, self.last)), None)

    def overrides(self, cell: Cell) -> Overrides:
        """The variant's own overrides in this data set."""
        variant = dict(self.variants[cell.variant])
        special = variant.pop(FOR, {})
        return {**variant, **special.get(cell.dataset, {})}


def _fits(cell: Cell, pattern: str) -> bool:
    parts = [*pattern.split("/"), "*", "*"][:3]
    own = (cell.dataset, cell.variant, str(cell.seed))
    return all(part in ("*", value) for part, value in zip(parts, own, strict=True))


def load_study(path: str | Path) -> Study:
    """Read and check a study's file.

    Raises:
        UserError: any mistake; one line names the file and the key.
    """
    path = Path(path)
    try:
        # OmegaConf reads 4e-3 as a number; plain YAML 1.1 reads it as text.
        content = OmegaConf.to_container(OmegaConf.create(path.read_text("utf-8")), resolve=False)
        study = Study.model_validate(content)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: broken YAML: {one_line(str(error))}") from None
    study._path = path
    for problem in _problems(study):
        raise UserError(f"{path}: {problem}")
    return study


def _problems(study: Study) -> Iterator[str]:
    for kind, names in (("datasets", study.datasets), ("variants", study.variants)):
        if not names:
            yield f"{kind}: name at least one"
        for name in names:
            if _NAME.fullmatch(name) is None:
                yield f"{kind}.{name}: a name is made of letters, digits and '_.@=+-'"
    if list(study.checkpoints) != sorted(set(study.checkpoints)):
        yield "checkpoints: must rise"
    if len(set(study.seeds)) != len(study.seeds):
        yield "seeds: one is given twice"
    if not study.base_path.exists():
        yield f"base: no file {study.base}, neither beside the study nor here"
    for variant, overrides in study.variants.items():
        yield from _for_problems(study, variant, overrides)
    chosen: list[tuple[str, Choice | Maps]] = [("only", choice) for choice in study.only]
    chosen += [("maps", maps) for maps in study.maps]
    for where, entry in chosen:
        yield from _unknown(f"{where}: dataset", entry.dataset, study.datasets)
        yield from _unknown(f"{where}: variant", entry.variant, study.variants)
        for seed in entry.seeds or ():
            yield from _unknown(f"{where}: seed", seed, study.seeds)
    for maps in study.maps:
        for step in maps.steps or ():
            yield from _unknown("maps: step", step, study.checkpoints)


def _for_problems(study: Study, variant: str, overrides: Mapping[str, Any]) -> Iterator[str]:
    special = overrides.get(FOR, {})
    if not isinstance(special, dict):
        yield f"variants.{variant}.{FOR}: must be data set: {{key: value}}"
        return
    for name, part in special.items():
        yield from _unknown(f"variants.{variant}.{FOR}", name, study.datasets)
        if not isinstance(part, dict):
            yield f"variants.{variant}.{FOR}.{name}: must be key: value"


def _unknown(where: str, name: Any, known: Any) -> Iterator[str]:
    if name is not None and name not in known:
        yield f"{where} {name!r} is not there; {choices(str(name), map(str, known))}"


def _first(error: ValidationError) -> str:
    """The first error, in plain words."""
    finding = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    place = [str(part) for part in finding["loc"]]
    key = ".".join(place)
    if finding["type"] == "extra_forbidden":
        # Between the data set's name and the key, pydantic puts the recipe's name: no key of the
        # file.
        key = ".".join(
            part for n, part in enumerate(place) if not (place[0] == "datasets" and n == 2)
        )
        close = nearest(place[-1], _fields(place))
        return f"{key}: unknown key" + (f"; the nearest valid one is {close!r}" if close else "")
    if finding["type"] == "missing":
        return f"{key}: this key is required"
    return f"{key}: {one_line(finding['msg'])} (given: {finding['input']!r:.60})"


def _fields(place: Sequence[str]) -> list[str]:
    recipes: dict[str, type[Section]] = {
        "demo": DemoRecipe,
        "fashion": FashionRecipe,
        "folder": FolderRecipe,
    }
    if place[0] == "datasets" and len(place) > 2:
        return list(recipes[place[2]].model_fields)
    sections: dict[str, type[Section]] = {"samples": Samples, "only": Choice, "maps": Maps}
    return list(sections.get(place[0], Study).model_fields)
