# SPDX-License-Identifier: Apache-2.0
"""Checks every batch once: bad numbers, loss spikes, time left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from ahpa_scale.algorithms.guard.departure import Departure
from ahpa_scale.algorithms.guard.finite import (
    batch_norms,
    finite_or_none,
    hold_step,
    let_step,
    nonfinite_flag,
    on_host,
    own_norms,
)
from ahpa_scale.algorithms.guard.ledger import Journal, last_saved_batch, may_roll_back
from ahpa_scale.algorithms.guard.spikes import Spikes, SpikeWatch
from ahpa_scale.errors import UserError
from ahpa_scale.exits import RollBackError, RunStoppedError
from ahpa_scale.preemption import Requests

Policy = Literal["none", "skip", "stop", "rollback"]
POLICIES = ("none", "skip", "stop", "rollback")
_TOTAL = "loss/train/total"


class Guard(Algorithm):
    """Keeps bad batches out of the weights, watches the loss, and ends a run in time.

    A batch whose loss or gradient norm is not finite, on any rank, changes neither weights nor
    moments. The device checks that; the host reads the answer once, at the end of the batch. Give
    it to the Trainer before `GradClip`, so that it can reuse those norms.

    Args:
        output_dir: local folder for ``guard.jsonl``; None writes to Python's log alone.
        nonfinite: after such a batch ``skip`` goes on, ``stop`` ends the run, ``rollback`` asks for
            a restart from the last checkpoint; ``none`` doesn't check.
        patience: bad batches in a row after which ``skip`` ends the run as well.
        spikes: what counts as a loss spike and what follows; None doesn't check.
        save_folder: folder or URL of the checkpoints; needed by ``rollback``.
        rollbacks: rollbacks allowed to one checkpoint; the next one ends the run.
        time_limit: seconds from the start of the process. Then training ends after the next batch
            as it does at full length, checkpoint included; rank 0's clock decides.
        requests: what each rank is asked from outside. All ranks agree on it once a batch, and
            leave as when time is up.

    Raises:
        UserError: an option out of range, or a rollback without a save_folder.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        nonfinite: Policy = "skip",
        patience: int = 10,
        spikes: Spikes | None = None,
        save_folder: str | None = None,
        rollbacks: int = 1,
        time_limit: float | None = None,
        requests: Requests | None = None,
    ) -> None:
        if nonfinite not in POLICIES:
            raise UserError(f"nonfinite is {nonfinite!r}: choose one of {', '.join(POLICIES)}")
        if patience < 1 or rollbacks < 1:
            raise UserError("patience and rollbacks of the guard must be at least 1")
        asks = "rollback" in (nonfinite, spikes.action if spikes else None)
        if asks and save_folder is None:
            raise UserError("rollback needs a save_folder to go back to")
        self.nonfinite, self.patience, self.rollbacks = nonfinite, patience, rollbacks
        self.save_folder = save_folder
        self.spikes = spikes
        self.departure = Departure(time_limit, requests)
        self._watch = SpikeWatch(spikes) if spikes else None
        self._journal = Journal(output_dir)
        self._bad_in_row = 0
        self._late = False
        self._loss: Tensor | None = None  # of the micro-batches so far, on the device
        self._norms: Mapping[str, Tensor | float] = {}
        self._flags_4: Tensor | None = None  # not finite; out of time; asked to leave; to save

    def match(self, event: Event, state: State) -> bool:
        """Around the batch, and where a checkpoint may be saved."""
        del state
        return event in (
            Event.BEFORE_TRAIN_BATCH,
            Event.AFTER_LOSS,
            Event.AFTER_TRAIN_BATCH,
            Event.BATCH_END,
            Event.BATCH_CHECKPOINT,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Sums the loss, checks on the device, reads the flags, acts on them."""
        if event == Event.BEFORE_TRAIN_BATCH:
            self._loss = None  # a batch that ran out of memory is retried
        elif event == Event.AFTER_LOSS:
            self._gather(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            self._judge(state)
        elif event == Event.BATCH_END:
            self._act(state, logger)
        elif self._late:
            # Not earlier: it changes the run's length, which others still use up to here.
            state.stop_training()

    def state_dict(self) -> dict[str, Any]:
        """Bad batches in a row, and the losses in the spike window: only numbers."""
        spikes = {} if self._watch is None else {"spikes": self._watch.state()}
        return {"bad_in_row": self._bad_in_row, **spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._bad_in_row = int(state["bad_in_row"])
        if self._watch is not None and "spikes" in state:
            self._watch.load(state["spikes"])

    def _gather(self, state: State) -> None:
        loss = _total(state.loss)
        self._loss = loss if self._loss is None else self._loss + loss

    def _judge(self, state: State) -> None:
        if self.nonfinite == "none" and not self.departure.possible:
            return
        assert self._loss is not None
        # Filled on the device: a tensor built from host numbers would need a copy.
        answers = (False, *self.departure.asked_here())
        flags = [self._loss.new_full((), float(answer)) for answer in answers]
        if self.nonfinite != "none":
            norms = batch_norms(state)
            self._norms = norms
            flags[0] = nonfinite_flag([self._loss, *norms.values()])
        self._flags_4 = torch.stack(flags)
        # All ranks get the same answers, in one message.
        dist.all_reduce(self._flags_4, reduce_operation="MAX")
        if self.nonfinite != "none":
            hold_step(state, self._flags_4[0])

    def _act(self, state: State, logger: Logger) -> None:
        let_step(state)
        bad, self._late = self._read(state)
        if self._late:
            self._end_in_time(state)
        if bad:
            self._on_nonfinite(state, logger)
        else:
            self._bad_in_row = 0
        if self._watch is not None and _TOTAL in (state.total_loss_dict or {}):
            loss = state.total_loss_dict[_TOTAL]
            level = self._watch.see(loss)
            if level is not None and self._watch.due():
                self._on_spikes(state, logger, loss, level)

    def _read(self, state: State) -> tuple[bool, bool]:
        """The batch's flags. Composer has waited for the losses, so the device is done by now."""
        if self._flags_4 is None:
            return False, False
        bad, *answers = (bool(flag) for flag in self._flags_4.tolist())
        late = self.departure.agree(*answers)
        own = own_norms(state)
        if own and self.nonfinite != "none":
            self._norms = own
            bad = bad or bool(nonfinite_flag(torch.as_tensor(norm) for norm in own.values()))
        return bad, late

    def _on_nonfinite(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"guard/nonfinite": 1.0})
        self._bad_in_row += 1
        action = self.nonfinite
        if action == "skip" and self._bad_in_row >= self.patience:
            action = "stop"
        text = f"loss or gradient not finite in batch {_batch(state)}, which changed nothing"
        losses = {"losses": self._losses_by_rank(), "grad_norms": on_host(self._norms)}
        row = f" ({self._bad_in_row} in a row)" if self._bad_in_row > 1 else ""
        self._follow(action, state, text + row, {"event": "nonfinite", **losses})

    def _on_spikes(self, state: State, logger: Logger, loss: float, level: float) -> None:
        assert self._watch is not None
        rule = self._watch.rule
        logger.log_metrics({"guard/spikes": float(rule.patience)})
        text = (
            f"loss {loss:.4g} in batch {_batch(state)} is the last of {rule.patience} spikes above "
            f"{level:.4g}, {rule.threshold:g} deviations over the median of {rule.window} batches"
        )
        self._follow(rule.action, state, text, {"event": "spikes", "loss": loss, "level": level})

    def _follow(self, action: str, state: State, text: str, record: dict[str, Any]) -> None:
        """Writes down what happened, with the samples' ids, and does what the policy says.

        Raises:
            RunStoppedError: the run ends here, on every rank.
        """
        samples = _samples_of_all_ranks(state)
        again = False
        if action == "rollback":
            assert self.save_folder is not None
            again = may_roll_back(state, self.save_folder, self.rollbacks)
            if not again:
                action = "stop"
                text += f"; {self.rollbacks} rollback(s) to this checkpoint have not helped"
        record = {"batch": _batch(state), **record, "action": action, "samples": samples}
        self._journal.note(f"{text}; policy: {action}", record)
        if action in ("stop", "rollback"):
            dist.barrier()  # rank 0 has written before any rank leaves
        if action == "rollback":
            raise RollBackError(
                f"{text}; start again with checkpoint.autoresume=true to go on from the checkpoint "
                f"of batch {last_saved_batch(state)}"
            )
        if action == "stop":
            raise RunStoppedError(text)

    def _losses_by_rank(self) -> list[float | None]:
        """Sum of the micro-batches' losses on each rank: shows which rank had the bad one."""
        assert self._loss is not None
        gathered: list[float | None] = dist.all_gather_object(finite_or_none(self._loss))
        return gathered

    def _end_in_time(self, state: State) -> None:
        batch = _batch(state)
        text, event = self.departure.reason(batch)
        self._journal.note(f"{text}; the run ends", {"event": event, "batch": batch})


def _total(loss: Any) -> Tensor:
    """A model's loss, in any of Composer's forms, as one scalar: a copy, because Composer later
    scales the same tensor in place.
    """
    if isinstance(loss, Mapping):
        loss = loss["total"] if "total" in loss else tuple(loss.values())
    parts = (loss,) if isinstance(loss, Tensor) else loss
    return torch.stack([part.detach().float().mean() for part in parts]).sum()


def _batch(state: State) -> int:
    """Number of the batch just trained, as in metrics.jsonl."""
    return int(state.timestamp.batch.value)


def _samples_of_all_ranks(state: State) -> list[int] | None:
    """``batch["index"]`` of all ranks in order, None where batches have none; waits for the
    device, so only called for a batch that is recorded.
    """
    batch = state.batch
    index_B = batch.get("index") if isinstance(batch, Mapping) else None
    mine = index_B.tolist() if isinstance(index_B, Tensor) else None
    parts = dist.all_gather_object(mine)
    return None if None in parts else [index for part in parts for index in part]
