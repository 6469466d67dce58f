# SPDX-License-Identifier: Apache-2.0
"""The study's report: stored rows in, REPORT.md, report.html and figures out, always the same."""

from __future__ import annotations

from experiments.report.build import report

__all__ = ["report"]
