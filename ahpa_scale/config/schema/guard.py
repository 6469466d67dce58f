# SPDX-License-Identifier: Apache-2.0
"""What a run does about bad batches, loss spikes and the end of its job's time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ahpa_scale.config.schema.fields import Duration, Section


class Spikes(Section):
    """Losses far above those of the batches before."""

    action: Literal["none", "warn", "stop", "rollback"] = Field(
        "warn",
        description="After three in a row, each 8 robust standard deviations above the median of "
        "the last 100 batches: warn; stop (exit code 70); rollback (exit code 76); none: don't "
        "look.",
    )


class Guard(Section):
    """Keeps bad batches out of the weights and ends the run in time."""

    nonfinite: Literal["none", "skip", "stop", "rollback"] = Field(
        "skip",
        description="After a batch with a loss or gradient that is not finite, which never changes "
        "the weights: skip: go on, ten in a row end the run; stop: end, exit code 70; rollback: "
        "end, exit code 76, for a restart from the last checkpoint; none: don't look.",
    )
    spikes: Spikes = Field(Spikes(), description="Loss spikes.")
    time_limit: Duration | None = Field(
        None,
        description="Time from the start of the process after which training ends with a "
        "checkpoint and exit code 0, as in '23h30m'; null: none.",
    )
