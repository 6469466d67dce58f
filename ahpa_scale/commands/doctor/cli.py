# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.exits import FAILED

if TYPE_CHECKING:
    from ahpa_scale.commands.doctor.finding import Finding
    from ahpa_scale.config.schema import Config


def doctor(
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[YAML]", help="A run; its data and folders are tried.", callback=options.LOCAL
        ),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[KEY=VALUE]...", help="As for train.py."),
    ] = None,
) -> None:
    """Say whether this machine can train; paste it into a bug report.

    Exit code 1 if something is wrong.
    """
    from ahpa_scale.commands.doctor.finding import Verdict
    from ahpa_scale.config.load import load_yaml

    config = None if run is None else load_yaml(run, overrides or ())
    counts = dict.fromkeys(Verdict, 0)
    for finding in _findings(config):
        console.tell(str(finding))
        counts[finding.verdict] += 1
    if counts[Verdict.WRONG]:
        console.tell(f"not fit to train: {counts[Verdict.WRONG]} wrong")
        raise typer.Exit(FAILED)
    console.tell(f"fit to train, {counts[Verdict.NOTE]} to note")


def _findings(config: Config | None) -> Iterator[Finding]:
    from ahpa_scale.commands.doctor import host, packages, places

    yield from packages.findings()
    yield from host.findings()
    from ahpa_scale.commands.doctor import gpus

    yield from gpus.findings()
    if config is not None:
        yield from places.findings(config)
