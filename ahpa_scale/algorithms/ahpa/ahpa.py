# SPDX-License-Identifier: Apache-2.0
"""AHPA as a Composer algorithm: it attaches the alignment, decides when it acts, and reports
what the router does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from composer.core import Algorithm, Event, State, Time, TimeUnit
from composer.loggers import Logger
from torch import nn

from ahpa_scale.algorithms.ahpa.kinds import KINDS, ROUTERS, kind_groups
from ahpa_scale.algorithms.timing import Every
from ahpa_scale.method import DynamicRouter, PriorAlignment, ScheduledRouter, UniformRouter
from ahpa_scale.method.priors import LATENT
from ahpa_scale.models.dit import DiT
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae_config import default_groups

NAME = "alignment"


class AHPA(Algorithm):
    """Aligns a DiT's hidden state with multi-level features of the frozen VAE encoder (arXiv
    2605.03317).

    On ``Event.INIT`` it attaches a :class:`~ahpa_scale.method.PriorAlignment` to the
    :class:`~ahpa_scale.models.generator.DiffusionGenerator` and adds its parameters to the
    optimizer; on ``Event.BATCH_START`` it sets the alignment's weight for this batch; on
    ``Event.BATCH_END`` it closes the batch's statistics and, every `log_interval`, logs them.
    Nothing of it is needed for sampling: ``generator.detach("alignment")`` leaves the plain model.

    Args:
        levels: name -> channels of every prior level that the batches bring, fine to coarse.
        kind: ``ahpa``, ``uniform``, ``scheduled``, ``single``, ``latent`` or ``repa``; sets the
            defaults of the rest.
        groups: group name -> its levels, fine to coarse; None groups the encoder's levels in up to
            three.
        level: for ``kind="single"``: the group or level.
        weight: lambda, the factor of the alignment loss; None takes the kind's.
        tap: block whose output is aligned, 1-based; None takes the kind's.
        start: Composer time string from which alignment acts.
        until: Composer time string at which it is released for good (HASTE, arXiv 2505.16792), or
            None for never.
        loss: ``cosine`` or ``smooth_l1``; None takes the kind's.
        smooth_l1_beta: beta of the smooth L1 loss.
        spatial_norm: share of the token mean removed from targets, None for raw targets, ``"kind"``
            for the kind's.
        head: ``mlp``, ``conv`` or ``linear``.
        head_width: hidden width of an MLP head.
        router: keyword arguments of :class:`~ahpa_scale.method.DynamicRouter`; of
            :class:`~ahpa_scale.method.ScheduledRouter` for ``kind="scheduled"``.
        objective: ``standardised`` or ``literal``, see :class:`~ahpa_scale.method.PriorAlignment`.
        prior_weight: holds a dynamic router to its prior; None takes the objective's default.
        num_bins: t-bins of the statistics.
        log_interval: Composer time string between two reports of the router; each waits for the
            device once.

    Raises:
        ValueError: unknown kind, or a group that names a level which the batches don't bring.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        *,
        kind: str = "ahpa",
        groups: Mapping[str, Sequence[str]] | None = None,
        level: str | None = None,
        weight: float | None = None,
        tap: int | None = None,
        start: str = "0ba",
        until: str | None = None,
        loss: str | None = None,
        smooth_l1_beta: float = 0.05,
        spatial_norm: float | Literal["kind"] | None = "kind",
        head: str = "mlp",
        head_width: int = 2048,
        router: Mapping[str, Any] | None = None,
        objective: str = "standardised",
        prior_weight: float | None = None,
        num_bins: int = 10,
        log_interval: str = "100ba",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(
                f"unknown kind of alignment {kind!r}; choose one of {', '.join(KINDS)}"
            )
        defaults = KINDS[kind]
        self.kind = kind
        self.channels = dict(levels)
        self.groups = kind_groups(kind, groups or default_groups(self._encoder_levels()), level)
        for name in (one for group in self.groups.values() for one in group):
            if name not in self.channels and name != LATENT:
                raise ValueError(
                    f"kind {kind!r} aligns the level {name!r}, "
                    f"but the batches bring {', '.join(self.channels) or 'none'}"
                )
        self.weight = defaults.weight if weight is None else weight
        self.tap = tap
        self.start = Time.from_timestring(start)
        self.until = None if until is None else Time.from_timestring(until)
        if objective not in ROUTERS:
            raise ValueError(
                f"unknown router objective {objective!r}; choose one of {', '.join(ROUTERS)}"
            )
        self._router_settings = dict(router or {})
        if defaults.router == "dynamic":
            self._router_settings.setdefault("floor", ROUTERS[objective].floor)
            self._router_settings.setdefault("snr_prior", ROUTERS[objective].snr_prior)
        self._alignment_settings: dict[str, Any] = {
            "loss": loss or defaults.loss,
            "smooth_l1_beta": smooth_l1_beta,
            "spatial_norm": defaults.spatial_norm if spatial_norm == "kind" else spatial_norm,
            "head": head,
            "head_width": head_width,
            "objective": objective,
            "prior_weight": ROUTERS[objective].prior_weight
            if prior_weight is None
            else prior_weight,
            "num_bins": num_bins,
        }
        self._report_due = Every(log_interval, "log_interval")

    def _encoder_levels(self) -> list[str]:
        return [name for name in self.channels if name not in (LATENT, "external")]

    def match(self, event: Event, state: State) -> bool:
        """Acts when the model is there and around each batch."""
        return event in (
            Event.INIT,
            Event.BATCH_START,
            Event.BATCH_END,
            Event.EPOCH_END,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Attaches, weighs or reports, see the class."""
        if event == Event.INIT:
            self._attach(state)
        elif event == Event.BATCH_START:
            generator = unwrap(state.model)
            generator.set_weight(NAME, self.weight if self._acts(state) else 0.0)
        else:
            self._report(event, state, logger)

    def _attach(self, state: State) -> None:
        generator = unwrap(state.model)
        if self.tap is None:
            self.tap = KINDS[self.kind].tap(generator.dit.depth)
        alignment = self.build(generator.dit)
        generator.attach(NAME, alignment, self.tap, self.weight)
        for optimizer in state.optimizers:
            optimizer.add_param_group({"params": list(alignment.parameters())})

    def build(self, dit: DiT) -> PriorAlignment:
        """Builds the auxiliary for this DiT's width and token grid."""
        # A latent is read in the DiT's own patches, so its channels follow from the DiT.
        channels = {**self.channels, LATENT: dit.in_channels * dit.patch_size**2}
        return PriorAlignment(
            width=dit.width,
            grid=dit.grid,
            groups=self.groups,
            channels={g: sum(channels[one] for one in levels) for g, levels in self.groups.items()},
            router=self._build_router(),
            **self._alignment_settings,
        )

    def _build_router(self) -> nn.Module:
        router = KINDS[self.kind].router
        if router == "dynamic":
            return DynamicRouter(len(self.groups), **self._router_settings)
        if router == "scheduled":
            return ScheduledRouter(len(self.groups), **self._router_settings)
        return UniformRouter(len(self.groups))

    def _acts(self, state: State) -> bool:
        released = self.until is not None and reached(state, self.until)
        return reached(state, self.start) and not released

    def _report(self, event: Event, state: State, logger: Logger) -> None:
        alignment = unwrap(state.model).attachments[NAME]
        assert isinstance(alignment, PriorAlignment)
        alignment.statistics.commit()  # on EPOCH_END and FIT_END nothing is pending any more
        ended = event == Event.FIT_END and alignment.statistics.unread
        if not (ended or self._report_due(event, state)):
            return
        summary = alignment.read_summary(batch=state.timestamp.batch.value)
        for row, name in enumerate(summary["levels"]):
            for bin_index, weight in enumerate(summary["weight_GT"][row]):
                if weight is not None:
                    t = (bin_index + 0.5) / len(summary["count_T"])
                    logger.log_metrics({f"router/{name}/t{t:.2f}": weight})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed: the alignment's shape, not its
        schedule.
        """
        return {
            "kind": self.kind,
            "tap": self.tap,
            "groups": {k: list(v) for k, v in self.groups.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses to resume a run that aligned something else.

        Raises:
            ValueError: kind, tap or groups differ from the checkpoint's.
        """
        for key, now in self.state_dict().items():
            if key in state and state[key] != now:
                raise ValueError(
                    f"the checkpoint was trained with alignment.{key}={state[key]}, "
                    f"this run has {now}; set it back to resume, or start a new run"
                )


def unwrap(model: nn.Module) -> DiffusionGenerator:
    """The generator inside DDP or torch.compile.

    Raises:
        ValueError: the model is something else.
    """
    inner = getattr(model, "module", model)
    inner = getattr(inner, "_orig_mod", inner)
    if not isinstance(inner, DiffusionGenerator):
        raise ValueError(
            f"AHPA needs a DiffusionGenerator as the model, not {type(inner).__name__}"
        )
    return inner


def reached(state: State, moment: Time[Any]) -> bool:
    """Whether training has come to `moment`, in its own unit."""
    if moment.unit == TimeUnit.DURATION:
        elapsed = state.get_elapsed_duration()
        return elapsed is not None and elapsed >= moment
    return bool(state.timestamp >= moment)
