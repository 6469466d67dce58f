# SPDX-License-Identifier: Apache-2.0
"""Users' mistakes: one line that says where, which key, what is wrong and the nearest right
thing.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from ahpa_scale import console
from ahpa_scale.disk_errors import mendable
from ahpa_scale.errors import HostError, UserError
from ahpa_scale.exits import MISTAKE, TRY_AGAIN
from ahpa_scale.printable import without_secrets
from ahpa_scale.unreachable import UnreachableError

if TYPE_CHECKING:
    from ahpa_scale.config.schema import Config

COMMAND_LINE = "command line"
#: It is reached only where rank 0 does not meet the mistake, or no launcher ends the others.
_YIELD_SECONDS = 20.0
#: Most characters of a message.
_LONGEST_LINE = 1500


class ConfigError(UserError):
    """A mistake in the configuration.

    Attributes:
        source: the file (with line) or ``command line``; empty when the place is unknown.
        key: full dotted key; empty when the mistake is not about one key.
        problem: what is wrong, and the nearest right thing.
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        self.source, self.key, self.problem = source, key, one_line(problem)
        super().__init__(": ".join(part for part in (source, key, self.problem) if part))


def config_error(config: Config, key: str, problem: str) -> ConfigError:
    """A mistake at `key`, with the place where the user wrote it."""
    return ConfigError(config.source_of(key), key, problem)


def one_line(text: str) -> str:
    """Fold all white space, so that a message is exactly one line. Mask secrets, then cut a message
    that is too long.
    """
    folded = without_secrets(" ".join(text.split()))
    return folded if len(folded) <= _LONGEST_LINE else f"{folded[:_LONGEST_LINE]} ..."


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate most like `word`, or None when none is alike."""
    match = difflib.get_close_matches(word, list(candidates), n=1, cutoff=cutoff)
    return match[0] if match else None


def choices(word: str, candidates: Iterable[str]) -> str:
    """All candidates in words, after the nearest one if there is one."""
    names = list(candidates)
    close = nearest(word, names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}choose one of: {', '.join(names)}"


def speaks_for_all_ranks() -> bool:
    """Whether this process is the one that prints; an error that all ranks share is printed
    once.
    """
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return rank == "0" or not rank.isdecimal()  # a process of unknown rank speaks


def speaks_for_its_node() -> bool:
    """Whether this process is the one that prints what all ranks of a node share."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def exit_on_user_error(
    *, shared: bool = True, speaks: Callable[[], bool] = speaks_for_all_ranks
) -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and exit code 2, and a service that does not
    answer into one line and exit code 75. A fault of the software passes, with its traceback.

    Args:
        shared: whether all ranks meet the same mistakes, as before training. One rank then reports
            them, and a disk that refuses is a user's mistake as well.
        speaks: whether it is this one.
    """
    try:
        yield
    except UserError as error:
        ours = shared and not isinstance(error, HostError)
        leave(str(error), MISTAKE, shared=ours, speaks=speaks)
    except UnreachableError as error:
        # One rank may reach what another one doesn't.
        leave(str(error), TRY_AGAIN, shared=False)
    except OSError as error:
        text = mendable(error) if shared else None
        if text is None:
            raise
        leave(text, MISTAKE, shared=False)


def leave(
    problem: str,
    exit_code: int,
    *,
    shared: bool = True,
    speaks: Callable[[], bool] = speaks_for_all_ranks,
) -> NoReturn:
    """Say in one line on stderr why the ranks end, once for all of them, and end this rank.

    Args:
        problem: the reason.
        exit_code: exit code of this process.
        shared: whether all ranks have the problem; if not, this rank says it, whichever it is.
        speaks: whether this rank says what they share.

    Raises:
        SystemExit: with the exit code.
    """
    if not shared or speaks():
        text = f"error: {one_line(problem)}"
        console.say(text, level=logging.ERROR, fields={"exit_code": exit_code})
    else:
        # Composer's launcher ends all ranks when one fails, and takes the first rank's exit code.
        # So rank 0 must leave first: another rank's end would get it killed.
        threading.Event().wait(_YIELD_SECONDS)
    raise SystemExit(exit_code) from None
