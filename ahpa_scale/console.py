# SPDX-License-Identifier: Apache-2.0
"""Prints this package's lines on the console: as plain text, or as one JSON object per line.

With JSON, everything goes to stderr through Python's logging: our own lines, log records and
warnings of all libraries, and uncaught exceptions. What C and C++ libraries and Composer's launcher
print themselves stays text. Our lines contain no control characters and no passwords. Standard
library only, until JSON is chosen.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TextIO

from ahpa_scale.printable import printable, without_secrets

Format = Literal["text", "json"]

PACKAGE = "ahpa_scale"
_formatter: logging.Formatter | None = None
_hears_end: Callable[[str, int], None] | None = None


def set_up(format: Format, *, rank: int | None, node: int | None) -> None:
    """Chooses the format for this process. ``text`` changes nothing: JSON, once chosen, stays.

    Args:
        format: format of all further lines.
        rank: this process's rank in the job; None for a launcher.
        node: number of its node.
    """
    global _formatter
    if format == "text":
        return
    from pythonjsonlogger.json import JsonFormatter

    _formatter = JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
        static_fields={"rank": rank, "node": node},
        timestamp="time",
        json_serializer=_dumps,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter)
    # Replaces other handlers: a second one would print each line twice.
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger(PACKAGE).setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def hear_end(listener: Callable[[str, int], None] | None) -> None:
    """From now on, gives `listener` each line that says why this process ends, and its exit code.

    Args:
        listener: called on any thread, before the line is shown; it must not wait for long. None:
            nobody hears them.
    """
    global _hears_end
    _hears_end = listener


def say(
    text: str,
    *,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Says one line.

    Args:
        text: the line; control characters are written out, and passwords are masked.
        level: level of Python's logging; only JSON shows it.
        stream: where text goes; None is stderr.
        fields: the line's facts by name, for JSON; NaN and infinity become null.
    """
    text = printable(text)
    _hand_on(text, fields)
    if _formatter is None:
        print(text, file=stream or sys.stderr, flush=True)
    else:
        logging.getLogger(PACKAGE).log(level, text, extra=_strict(fields))


def tell(text: str) -> None:
    """Says one line of a command's answer. Text goes to stdout."""
    say(text, stream=sys.stdout)


def shout(text: str, *, level: int = logging.INFO, fields: Mapping[str, Any] | None = None) -> None:
    """Says one line without Python's streams: the main thread may hold their locks for ever, and
    some threads must not wait for it. The line is dropped if stderr takes no bytes.
    """
    text = printable(text)
    _hand_on(text, fields)
    with suppress(OSError, ValueError):
        if takes_writes():
            os.write(2, _line(text, level, fields).encode(errors="replace"))


def takes_writes() -> bool:
    """Whether stderr takes a line within a second. A full pipe without a reader takes none."""
    return bool(select.select([], [2], [], 1.0)[1])


def _hand_on(text: str, fields: Mapping[str, Any] | None) -> None:
    code = (fields or {}).get("exit_code")
    if _hears_end is not None and isinstance(code, int):
        _hears_end(text, code)


def _line(text: str, level: int, fields: Mapping[str, Any] | None) -> str:
    if _formatter is None:
        return f"{text}\n"
    record = logging.LogRecord(PACKAGE, level, "", 0, text, None, None)
    record.__dict__.update(_strict(fields))
    return f"{_formatter.format(record)}\n"


def is_json() -> bool:
    """Whether JSON was chosen."""
    return _formatter is not None


def _strict(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """JSON has no word for NaN and infinity."""
    return {name: _strict_value(value) for name, value in (fields or {}).items()}


def _strict_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value) if isinstance(value, str) else value


def _dumps(record: Mapping[str, Any], **options: Any) -> str:
    """A record as JSON, its traceback included, without secrets."""
    told = {n: without_secrets(v) if isinstance(v, str) else v for n, v in record.items()}
    return json.dumps(told, **options)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logging.getLogger(PACKAGE).critical(
        "%s: %s", kind.__name__, error, exc_info=(kind, error, traceback)
    )


def _log_uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    error = given.exc_value or given.exc_type()
    if not isinstance(error, SystemExit):  # SystemExit ends a thread without an error
        _log_uncaught(given.exc_type, error, given.exc_traceback)
