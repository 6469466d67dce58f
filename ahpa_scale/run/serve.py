# SPDX-License-Identifier: Apache-2.0
"""The logging section and the launcher's variables -> console lines and served metrics.

Imports neither torch nor Composer, so that console and metrics work while these load.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import ahpa_scale
from ahpa_scale import console
from ahpa_scale.config.schema import Config
from ahpa_scale.errors import HostError
from ahpa_scale.watch import Pulse
from ahpa_scale.watch.place import number_in

if TYPE_CHECKING:
    from ahpa_scale.exporter import Board

_KEY = "logging.metrics_port"


def set_up_console(config: Config) -> None:
    """Sets the console format from the configuration, rank and node from the launcher."""
    rank, node = _place()
    console.set_up(config.logging.format, rank=rank, node=node)


@contextmanager
def serve_metrics(config: Config, pulse: Pulse) -> Iterator[Board | None]:
    """Serves /metrics and /healthz while the body runs, on the first rank of each node.

    Args:
        config: configuration of the run.
        pulse: pulse of the main thread.

    Yields:
        The board for the loop's numbers; None if nothing is served.

    Raises:
        HostError: the port can't be opened on this host.
    """
    port = config.logging.metrics_port
    if port is None or os.environ.get("LOCAL_RANK", "0") != "0":
        yield None
        return
    from ahpa_scale.exporter import Board, serving

    board = Board(_info(config))
    with ExitStack() as stack:
        try:
            stack.enter_context(serving(port, board, pulse, config.watch.hang))
        except OSError as error:
            where = config.source_of(_KEY)
            raise HostError(
                f"{where}: {_KEY}: TCP port {port} can't be had on {socket.gethostname()}: "
                f"{error.strerror}; name another one, or null"
            ) from None
        yield board


def _place() -> tuple[int, int]:
    """This process's rank and node. torchrun sets no NODE_RANK, so it is computed."""
    rank = number_in(os.environ, "RANK", 0)
    per_node = number_in(os.environ, "LOCAL_WORLD_SIZE", 1)
    return rank, number_in(os.environ, "NODE_RANK", rank // per_node)


def _info(config: Config) -> dict[str, str]:
    return {
        "run": config.run_name,
        "version": ahpa_scale.__version__,
        "engine": config.parallelism.engine,
        "ranks": os.environ.get("WORLD_SIZE", "1"),
        "node": str(_place()[1]),
    }
