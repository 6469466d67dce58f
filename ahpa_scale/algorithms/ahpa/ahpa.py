# SPDX-License-Identifier: Apache-2.0
"""AHPA as a Composer algorithm: it attaches the alignment, decides when it acts, and reports
what the router does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from ahpa_scale.algorithms.ahpa.design import Design
from ahpa_scale.algorithms.ahpa.report import Reporter
from ahpa_scale.algorithms.ahpa.schedule import Schedule
from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.algorithms.timing import Every
from ahpa_scale.errors import UserError
from ahpa_scale.method import AlignmentSettings, GapMap, PriorAlignment
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.prior_sources import SourceParts, build_sources

NAME = "alignment"


class AHPA(Algorithm):
    """Aligns a backbone's hidden state with multi-level features of the frozen VAE encoder (arXiv
    2605.03317).

    On ``Event.INIT`` it attaches a :class:`~ahpa_scale.method.PriorAlignment` to the
    :class:`~ahpa_scale.models.generator.DiffusionGenerator` and adds its parameters to the
    optimizer; on ``Event.BATCH_START`` it sets the alignment's weight for this batch; on
    ``Event.BATCH_END`` it closes the batch's statistics and, every `log_interval`, logs them.
    Sampling needs none of it: ``generator.detach("alignment")`` leaves the plain model.

    Args:
        levels: name -> channels of every prior level that the batches bring, fine to coarse.
        settings: what is aligned, how and how long; None takes the defaults.
        statistics: what whitening needs: ``<level>.mean`` and ``<level>.covariance``.
        gap_map: what the router's objective ``gap`` follows; None measures the gap while training.
        log_interval: Composer time string between two reports of the router; each waits for the
            device once, and the measured release is decided then.
        loss_interval: Composer time string between two logged values of the alignment loss of a
            batch, ``loss/train/alignment``; each waits for the device once.
        options: fields of :class:`~ahpa_scale.method.AlignmentSettings`; they override `settings`.

    Raises:
        UserError: unknown kind, a group that names a level which the batches don't bring, or both
            a weight and a gradient ratio.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        settings: AlignmentSettings | None = None,
        *,
        statistics: Mapping[str, Tensor] | None = None,
        gap_map: GapMap | None = None,
        log_interval: str = "100ba",
        loss_interval: str = "50ba",
        **options: Any,
    ) -> None:
        chosen = replace(settings or AlignmentSettings(), **options)
        self.design = Design(levels, chosen, statistics=statistics, gap_map=gap_map)
        self.settings = self.design.settings
        assert self.settings.weight is not None, "its kind has one"
        self.weight = self.settings.weight
        self.schedule = Schedule(chosen.start, chosen.until, chosen.ramp)
        self._report_due = Every(log_interval, "log_interval")
        self._loss_due = Every(loss_interval, "loss_interval")
        self._reporter = Reporter()
        self._alignment: PriorAlignment | None = None

    @property
    def tap(self) -> int | Mapping[str, int] | None:
        """The block that is aligned, or one per group; None until the backbone's depth is known."""
        return self.design.tap

    def build(self, backbone: Backbone) -> PriorAlignment:
        """Builds only the auxiliary module, see :meth:`Design.build`."""
        return self.design.build(backbone)

    def match(self, event: Event, state: State) -> bool:
        """Acts once the model exists, around batches, and at the end of epochs and training."""
        return event in (
            Event.INIT,
            Event.BATCH_START,
            Event.BATCH_END,
            Event.EPOCH_END,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Attaches, sets the weight or reports, see the class."""
        if event == Event.INIT:
            self._attach(state)
        elif event == Event.BATCH_START:
            self._weigh(state)
        else:
            self._report(event, state, logger)

    def _attach(self, state: State) -> None:
        generator = unwrap(state.model)
        alignment = self.build(generator.dit)
        tap = self.design.tap
        assert tap is not None, "building has chosen it"
        taps = alignment.blocks if isinstance(tap, Mapping) else tap
        # As a key of Composer's losses it would make the host wait in every batch.
        generator.attach(NAME, alignment, taps, self.weight, logged=False)
        for optimizer in state.optimizers:
            optimizer.add_param_group({"params": list(alignment.parameters())})
        averages = [plug_in.averages for plug_in in state.algorithms if isinstance(plug_in, EMA)]
        average = averages[0] if averages else None
        parts = SourceParts(generator.dit, average, self.settings.self_lead)
        for source in build_sources(alignment.levels, parts):
            generator.add_source(source)
        self._alignment = alignment

    def _weigh(self, state: State) -> None:
        generator = unwrap(state.model)
        share = self.schedule.share(state)
        generator.set_weight(NAME, self.weight * share)
        balance = self._attached(state).balance
        if balance is not None:
            balance.hold = share < 1

    def _report(self, event: Event, state: State, logger: Logger) -> None:
        alignment = self._attached(state)
        alignment.commit()  # on EPOCH_END and FIT_END nothing is pending any more
        if self._loss_due(event, state):
            logger.log_metrics({"loss/train/alignment": self._batch_loss(state)})
        due = self._report_due(event, state)
        if not (due or (event == Event.FIT_END and alignment.statistics.unread)):
            return
        self._reporter.report(alignment, state, logger)
        if due and self.schedule.share(state) == 1 and alignment.trend.reached():
            if self.settings.release is not None:
                self.schedule.begin(state, self.settings.release.ramp)
                logger.log_metrics({"alignment/released": 1.0})
            else:
                text = "its residual has stopped falling; it no longer helps: release it "
                self._reporter.warn("plateau", text + "(alignment.until)", logger)

    def _batch_loss(self, state: State) -> float:
        """The alignment loss of the last batch; 0 where it did not act. Waits for the device."""
        mean = self._attached(state).batch_loss.mean
        return 0.0 if mean is None or not unwrap(state.model).weight(NAME) else float(mean)

    def _attached(self, state: State) -> PriorAlignment:
        alignment = unwrap(state.model).attachments[NAME]
        assert isinstance(alignment, PriorAlignment)
        return alignment

    def state_dict(self) -> dict[str, Any]:
        """The alignment's shape, which a resumed run must match, and the release's progress."""
        trend = {} if self._alignment is None else {"trend": self._alignment.trend.state()}
        return {"shape": self.design.shape(), "release": self.schedule.state(), **trend}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the release; refuses to resume a run that aligned something else.

        Raises:
            UserError: kind, tap, groups or grid differ from the checkpoint's.
        """
        # Older checkpoints hold the shape's keys beside the rest.
        saved = state.get("shape", state)
        for key, now in self.design.shape().items():
            if key in saved and saved[key] != now:
                raise UserError(
                    f"the checkpoint was trained with alignment.{key}={saved[key]}, "
                    f"this run has {now}; set it back to resume, or start a new run"
                )
        self.schedule.load(state.get("release"))
        if self._alignment is not None and "trend" in state:
            self._alignment.trend.load(state["trend"])


def unwrap(model: nn.Module) -> DiffusionGenerator:
    """The generator inside DDP or torch.compile.

    Raises:
        UserError: the model is something else.
    """
    inner = getattr(model, "module", model)
    inner = getattr(inner, "_orig_mod", inner)
    if not isinstance(inner, DiffusionGenerator):
        raise UserError(f"AHPA needs a DiffusionGenerator as the model, not {type(inner).__name__}")
    return inner
