# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale launch``: starts this node's ranks as the scheduler says."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Optional

import typer

from ahpa_scale import console
from ahpa_scale.commands import options


def launch(
    script: Annotated[
        str, typer.Argument(help="The training script, train.py.", callback=options.LOCAL)
    ],
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Its arguments: a YAML file, then any number of key=value."),
    ] = None,
    nproc: Annotated[
        options.Number,
        typer.Option("--nproc", "-n", help="Ranks on this node (default: the scheduler's)."),
    ] = None,
    nnodes: Annotated[options.Number, typer.Option(help="Nodes, where no scheduler says.")] = None,
    node_rank: Annotated[options.Number, typer.Option(help="This node's number, from 0.")] = None,
    master_addr: Annotated[options.Text, typer.Option(help="Host of node 0.")] = None,
    master_port: Annotated[options.Number, typer.Option(help="TCP port on it.")] = None,
    resolve_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for node 0's host to have an address.")
    ] = 300.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what it would do.")
    ] = False,
) -> None:
    """Start this node's ranks as the scheduler's variables say."""
    from ahpa_scale.config.checks.folders import check_folders
    from ahpa_scale.launch import command, environment, flags
    from ahpa_scale.preemption import listening

    with listening(preparing=True):
        given = (nnodes, node_rank, master_addr, master_port)
        if any(flag is not None for flag in given):
            placement = flags.from_flags(*given, nproc)
        else:
            placement = environment.from_environment(os.environ, nproc)
        words = arguments or []
        config = command.check_run(placement, script, words)
        chosen = command.command_for(placement, script, words)
        if not dry_run:
            check_folders(config)
            console.set_up(config.logging.format, rank=placement.rank, node=placement.node_rank)
        console.say(f"{placement.source}: {chosen}", stream=sys.stdout)
        if dry_run:
            return
        if placement.master_addr is not None:
            command.wait_for_address(placement.master_addr, resolve_timeout)
        chosen.run()
