# SPDX-License-Identifier: Apache-2.0
"""The watch over all ranks of a job."""

from __future__ import annotations

from pydantic import Field

from ahpa_scale.config.schema.fields import Section


class Watch(Section):
    """When a rank that died or hangs ends the whole job; runs of several ranks only."""

    enabled: bool = Field(
        True, description="End the job, with exit code 75, when one of its ranks dies or hangs."
    )
    silence: float = Field(
        30.0,
        ge=2,
        le=3600,
        description="Seconds without a sign of life after which a rank counts as gone.",
    )
    hang: float | None = Field(
        1800.0,
        ge=2,
        description="Seconds without progress of any rank after which the job counts as stuck, and "
        "of one after which its /healthz says so; null: never.",
    )
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="UDP port on rank 0's host; null: the number of MASTER_PORT.",
    )
