# SPDX-License-Identifier: Apache-2.0
"""Ensures that only one live run saves to a folder: the run renews a lease file there. No torch.

Clocks of other machines are not trusted. If the file has not changed for `EXPIRY` seconds by this
machine's clock, its run is gone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ahpa_scale import console, storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.errors import UserError
from ahpa_scale.exits import TRY_AGAIN
from ahpa_scale.typed_json import STRICT, parse_as

LEASE = "lease.json"
#: A lease expires after this many seconds without a change.
EXPIRY = 60.0
_RENEWAL = 15.0
_TICK = 1.0
#: Seconds to wait at the end of a run for a renewal that is still under way.
_FAREWELL = 10.0
#: Largest size in bytes of a lease file that is read.
_LARGEST = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run_name: as configured.
        token: random, unique to this process.
        host: host name, for messages.
        process: facts that identify the process on its machine since the machine's start.
        renewals: number of renewals so far. It makes the file change.
        leaving: the run has been asked to leave and is saving.
    """

    __pydantic_config__ = STRICT

    run_name: str
    token: str
    host: str
    process: Mapping[str, str]
    renewals: int = 0
    leaving: bool = False

    @property
    def name(self) -> str:
        """The run, process and host, for messages."""
        pid = self.process.get("pid", "?")
        return f"the run {self.run_name!r} (process {pid} on {self.host})"


class Lease:
    """This process' lease of a folder. A thread renews it.

    Args:
        folder: local path or URL of the checkpoints.
        holder: describes this process.
        lost: called on the thread once another run has taken the folder.
        leaves: whether this run has been asked to leave. Then others keep waiting for the folder.
    """

    def __init__(
        self,
        folder: str,
        holder: Holder,
        lost: Callable[[str], None],
        leaves: Callable[[], bool],
    ) -> None:
        self.folder = folder
        self._url = storage.join(folder, LEASE)
        self._holder = holder
        self._lost, self._leaves = lost, leaves
        self._over = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def take(self) -> None:
        """Waits until nobody else holds the folder, then takes it.

        Raises:
            CheckpointError: a living run holds it.
            OSError: the store can't be reached, or the disk takes nothing.
        """
        _wait_until_free(self._url, self.folder)
        storage.write_text(self._url, _text(self._holder))
        self._thread.start()

    def confirm(self) -> None:
        """Checks that no run that started at the same moment has taken the folder.

        Raises:
            CheckpointError: another run has taken it.
        """
        other = self._other(_content(self._url))
        if other is not None:
            raise CheckpointError(_taken(self.folder, other))

    def release(self) -> None:
        """Ends the lease so that the next process need not wait."""
        self._over.set()
        self._thread.join(_FAREWELL)
        try:
            with storage.asking_once():
                content = _content(self._url)
                if content is not None and self._other(content) is None:
                    storage.remove(self._url)
        except (OSError, UserError) as error:
            _log.warning("%s is left behind, for %.0f s: %s", self._url, EXPIRY, error)

    def _run(self) -> None:
        """The work of the thread."""
        with storage.asking_once():  # the thread tries again later anyway
            self._renew()

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(_TICK):
            asked = self._leaves() and not self._holder.leaving
            if not asked and time.monotonic() - renewed < _RENEWAL:
                continue
            try:
                other = self._other(_content(self._url))
                if other is not None:
                    self._lost(_taken(self.folder, other))
                    return
                count, leaving = self._holder.renewals + 1, self._holder.leaving or asked
                held = replace(self._holder, renewals=count, leaving=leaving)
                storage.write_text(self._url, _text(held))
            except (OSError, UserError) as error:
                if not self._failed:
                    _log.warning("checkpoints: %s can't be renewed for now: %s", self._url, error)
                self._failed = True
            else:
                self._holder, renewed, self._failed = held, time.monotonic(), False

    def _other(self, content: bytes | None) -> Holder | None:
        """The other run that holds the folder, if any."""
        holder = None if content is None else _holder(content)
        return None if holder is None or holder.token == self._holder.token else holder


@contextmanager
def holding(
    folder: str,
    run_name: str,
    lost: Callable[[str], None] | None = None,
    leaves: Callable[[], bool] = lambda: False,
) -> Iterator[Lease]:
    """Holds a folder of checkpoints while the body runs.

    Args:
        folder: local path or URL.
        run_name: name of this run.
        lost: called on another thread, with one line, if another run has taken the folder because
            the network was away longer than a lease lasts. None ends the process with code 75.
        leaves: whether this run has been asked to leave and is saving.

    Raises:
        CheckpointError: a living run holds it.
        OSError: the store can't be reached, or the disk takes nothing.
    """
    holder = Holder(run_name, secrets.token_hex(8), socket.gethostname(), _this_process())
    lease = Lease(folder, holder, lost or _leave, leaves)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _wait_until_free(url: str, folder: str) -> None:
    first = last = _content(url)
    since = time.monotonic()
    said = False
    while last is not None:
        holder = _holder(last)
        if holder is not None and _is_dead(holder):
            return
        now = time.monotonic()
        if now - since >= EXPIRY:
            return
        if last != first and holder is not None and not holder.leaving:
            raise CheckpointError(_taken(folder, holder))
        if not said:
            who = "a run" if holder is None else holder.name
            _log.warning(
                "checkpoints: %s is held by %s; waiting up to %.0f s for a sign of life",
                *(folder, who, EXPIRY),
            )
            said = True
        time.sleep(_TICK)
        seen = _content(url)
        if seen != last:
            last, since = seen, now


def _taken(folder: str, holder: Holder) -> str:
    return (
        f"{folder} is in use by {holder.name}, which is alive: end that one first, or give this "
        "run a save_folder of its own"
    )


def _leave(problem: str) -> None:
    console.say(f"error: {problem}", level=logging.ERROR, fields={"exit_code": TRY_AGAIN})
    os._exit(TRY_AGAIN)


def _content(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url, _LARGEST)
    except FileNotFoundError:
        return None


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder)) + "\n"


def _holder(content: bytes) -> Holder | None:
    """The holder in a lease file; None if unreadable. Then only its changes count."""
    try:
        return parse_as(Holder, content, LEASE, _LARGEST)
    except UserError:
        return None


def _this_process() -> dict[str, str]:
    pid = os.getpid()
    return {**_machine(), "pid": str(pid), "started": _started(pid) or ""}


def _machine() -> dict[str, str]:
    """The scope of process numbers: this boot of the machine and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "pids": str(os.stat("/proc/self/ns/pid").st_ino)}
    except OSError:
        return {}


def _started(pid: int | str) -> str | None:
    """Start time of a living process, in clock ticks. Empty if this user may not see it; None if
    the process is gone or a zombie.
    """
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]


def _is_dead(holder: Holder) -> bool:
    """Whether the process is known to be gone. Processes of other machines never are."""
    then, here = holder.process, _machine()
    if not here or any(then.get(name) != value for name, value in here.items()):
        return False
    pid = then.get("pid", "")
    return pid.isdecimal() and _started(pid) not in ("", then.get("started"))
