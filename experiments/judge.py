# SPDX-License-Identifier: Apache-2.0
"""The callback that judges a run's averaged weights at the study's checkpoints.

Shapes: N samples, S their sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor

from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.callbacks.common import router_summary, unwrap
from ahpa_scale.data.card import read_card
from ahpa_scale.data.stream import build_loader
from ahpa_scale.evaluation.heldout import heldout_flow
from ahpa_scale.evaluation.recoverability import recoverability
from ahpa_scale.evaluation.samples import draw_samples
from ahpa_scale.level_names import EXTERNAL, LATENT
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.precision import same_on_every_cpu
from ahpa_scale.sampling.settings import SamplerSettings
from experiments.builds import build_of
from experiments.cells import Plan
from experiments.datasets import DataFolder
from experiments.rows import Row
from experiments.scoring import sample_labels, scorer
from experiments.study import Maps, Study

_BATCH = 64
# Noise levels at which each held-out picture is used.
_DRAWS = 4


class Judge(Callback):
    """Appends a row at each checkpoint that has none yet.

    Judging doesn't change the global random generators, so a run that is judged more often trains
    to the same weights.

    Args:
        study: the study.
        plan: the cell's plan.
        digest: the digest of the stored rows.
        missing: rows that the cell still needs: kind and checkpoint.
        append: takes a row.
        show: takes the last checkpoint's first samples, uint8 [N, 3, S, S].
    """

    def __init__(
        self,
        study: Study,
        plan: Plan,
        digest: str,
        missing: Collection[tuple[str, int]],
        append: Callable[[Row], Any],
        show: Callable[[Tensor], None],
    ) -> None:
        self.study, self.plan, self.digest = study, plan, digest
        self.missing = set(missing)
        self.append, self.show = append, show
        self.seconds = 0.0
        self._begun = 0.0
        self._build = build_of(plan.data)
        self._room = JudgingRoom(study, plan.data)

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far, without the judging."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = float(state["seconds"])

    def batch_start(self, state: State, logger: Logger) -> None:
        del state, logger
        self._begun = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        del logger
        self.seconds += time.monotonic() - self._begun
        self._append(state, "run", "map")

    def map_what_was_trained(self, state: State) -> None:
        """Append the map of the checkpoint that the run resumed from, if it was asked for later."""
        self._append(state, "map")

    def _append(self, state: State, *kinds: str) -> None:
        step = state.timestamp.batch.value
        kinds = tuple(kind for kind in kinds if (kind, step) in self.missing)
        if not kinds:
            return
        generator = unwrap(state.model)
        assert isinstance(generator, DiffusionGenerator)
        averages = next(algorithm for algorithm in state.algorithms if isinstance(algorithm, EMA))
        # Compiled or not, all runs are judged by the same arithmetic. Compiling for the batch sizes
        # of the judging isn't worth its time.
        eager = torch.compiler.set_stance("force_eager")
        with (
            eager,
            same_on_every_cpu(),
            averages.applied(state.model),
            torch.random.fork_rng(devices=[]),
        ):
            for kind in kinds:
                measured = (
                    self._judge(state, generator) if kind == "run" else self._map(generator, step)
                )
                self.append({**self._head(kind, step), **measured})

    def _head(self, kind: str, step: int) -> Row:
        cell = self.plan.cell
        return {
            "kind": kind,
            "study": self.study.name,
            "dataset": cell.dataset,
            "variant": cell.variant,
            "seed": cell.seed,
            "step": step,
            "digest": self.digest,
            "build": self._build,
        }

    def _judge(self, state: State, generator: DiffusionGenerator) -> Row:
        metrics, flow_t, images_N3SS = self._room.judge(generator)
        if state.timestamp.batch.value == self.study.last:
            self.show(images_N3SS)
        router = router_summary(state.model)
        return {
            "images": state.timestamp.sample.value,
            "metrics": metrics,
            "curves": {"flow_t": flow_t, "router": router and _curves(router)},
            "seconds": self.seconds,
        }

    def _map(self, generator: DiffusionGenerator, step: int) -> Row:
        wanted = self.study.maps_of(self.plan.cell, step)
        assert wanted is not None
        return {"map": self._room.map(generator, wanted)}


def _curves(router: dict[str, Any]) -> dict[str, Any]:
    return {name: router[name] for name in ("levels", "weight_GT", "loss_GT")}


class JudgingRoom:
    """Judges a generator on a data set of a study."""

    def __init__(self, study: Study, data: DataFolder) -> None:
        self.study, self.data = study, data

    def judge(self, generator: DiffusionGenerator) -> tuple[dict[str, float], list[float], Tensor]:
        """Metrics, the held-out flow loss per t-bin, and the samples uint8 [N, 3, S, S].

        The samples' noise, labels and the held-out noise are the same in every call.
        """
        study, samples = self.study, self.study.samples
        flow = heldout_flow(
            generator, self.heldout(), bins=study.flow_bins, draws=min(_DRAWS, study.flow_bins)
        )
        labels_N = torch.from_numpy(sample_labels(self.data, samples.count))
        images_N3SS = draw_samples(
            generator.dit,
            FrozenVAE.from_pretrained(self.data.vae),
            generator.scaling,
            generator.path,
            labels_N,
            settings=SamplerSettings(
                seed=samples.seed,
                steps=samples.steps,
                method=samples.method,
                guidance_scale=samples.guidance_scale,
            ),
        )
        unconditional = generator.dit.num_classes == 1
        metrics = scorer(self.data)(images_N3SS, None if unconditional else labels_N)
        return {**metrics, "flow": flow["flow"]}, flow["flow_t"], images_N3SS

    def map(self, generator: DiffusionGenerator, wanted: Maps) -> dict[str, Any]:
        """How well a linear readout of each block recovers each level at each noise."""
        card = read_card(self.data.heldout)
        levels = wanted.levels or (*card.level_names, LATENT, EXTERNAL)
        stored = tuple(level for level in levels if level in card.prior_columns)
        batches = islice(self.heldout(stored), -(-wanted.pictures // _BATCH))
        return recoverability(generator, batches, levels, bins=self.study.flow_bins).to_dict()

    def heldout(self, levels: tuple[str, ...] = ()) -> Iterator[dict[str, Tensor]]:
        """The held-out latents and the maps of these levels, in order."""
        loader = build_loader(
            str(self.data.heldout), batch_size=_BATCH, levels=levels, shuffle=False, drop_last=False
        )
        yield from loader
