# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a job find each other: the port of the job's store, and the key of its watch.

Rank 0 draws a token for each start of the job and puts it into the store. There every rank claims
its place. So a second job at the same address is noticed before it can disturb the first.
"""

from __future__ import annotations

import datetime
import hmac
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ahpa_scale.config.errors import HostError
from ahpa_scale.unreachable import UnreachableError
from ahpa_scale.watch import Place, job_key, tcp_port

if TYPE_CHECKING:
    from torch.distributed import Store

#: Variable with a secret that only the ranks of a job know; see docs/several-nodes.md.
SECRET = "AHPA_JOB_SECRET"
#: Seconds to wait for rank 0; torch waits as long for the ranks to meet.
PATIENCE = 300.0
_BETWEEN_TRIES = 0.5
_BETWEEN_LINES = 10.0
_log = logging.getLogger(__name__)


class Meeting:
    """One rank's part in the meeting. torch is not imported before `join`.

    Args:
        place: place of this rank.
        patience: seconds to wait for rank 0.

    Raises:
        PortError: on rank 0, if its TCP port can't be opened.
    """

    def __init__(self, place: Place, patience: float = PATIENCE) -> None:
        self.place, self.patience = place, patience
        self.secret = os.environ.get(SECRET, "").strip()
        self.token = secrets.token_hex(16) if place.rank == 0 else ""
        self._store: Store | None = None
        self._agents = _agent_holds_store()
        # This reserves the port for the job. torch takes it over when it is imported seconds later.
        leads = place.rank == 0 and not self._agents
        self._listener = tcp_port(place) if leads else None

    @property
    def key(self) -> bytes:
        """Key of the watch. Rank 0 has it at once, the others after `join`."""
        return job_key(self.secret, self.token)

    def join(self) -> None:
        """Opens or finds the store, claims this rank's place, and shares the token.

        Raises:
            UnreachableError: rank 0 is not there in time, or this rank's place is taken.
            HostError: this rank's secret is not that of rank 0.
        """
        where = f"{self.place.address}:{self.place.store_port}"
        if self._listener is None:
            self._wait_for_store(where)
        # Imported late, because it takes seconds.
        from torch.distributed import DistError

        try:
            self._agree(where)
        except DistError as error:
            raise UnreachableError(
                f"rank 0 at {where} has left before this rank had joined: {error}"
            ) from None

    def close(self) -> None:
        """Releases the port and the store. torch's process group keeps what it needs."""
        self._store = None
        if self._listener is not None:
            self._listener.close()

    def _agree(self, where: str) -> None:
        from torch.distributed import PrefixStore

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if self._agents else "0"
        self._store = self._opened()
        store = PrefixStore(f"ahpa_scale/{attempt}", self._store)
        rank = self.place.rank
        if store.add(f"rank {rank}", 1) > 1:
            raise UnreachableError(
                f"MASTER_PORT: a job that has a rank {rank} already meets at {where}: give each "
                "job a port of its own, or wait for the earlier attempt of this one to end"
            )
        if rank == 0:
            store.set("proof", self._proof())
            store.set("token", self.token)
            return
        self.token = store.get("token").decode()
        if not hmac.compare_digest(store.get("proof").decode(), self._proof()):
            raise HostError(f"{SECRET} is not the one that rank 0 has: give all ranks the same")

    def _proof(self) -> str:
        """Reveals ranks with another secret, but not the secret itself."""
        return job_key(self.secret, f"{self.token} proof").hex()

    def _opened(self) -> Store:
        from torch.distributed import TCPStore

        place = self.place
        # init_process_group finds the server of this port in this process and reuses it. Only the
        # store without libuv accepts a socket that already listens.
        serves = {} if self._listener is None else {"master_listen_fd": self._listener.detach()}
        return TCPStore(
            place.address,
            place.store_port,
            place.world,
            is_master=self._listener is not None,
            timeout=datetime.timedelta(seconds=self.patience),
            wait_for_workers=False,
            multi_tenant=True,
            use_libuv=self._listener is None,
            **serves,
        )

    def _wait_for_store(self, where: str) -> None:
        """Waits until somebody listens there. torch would wait without a message."""
        begun = said = time.monotonic()
        while True:
            try:
                address = (self.place.address, self.place.store_port)
                socket.create_connection(address, timeout=_BETWEEN_LINES).close()
                return
            except OSError as error:
                now = time.monotonic()
                if now - begun >= self.patience:
                    raise UnreachableError(
                        f"rank 0 has not come to {where} for {self.patience:g} s: "
                        f"{error.strerror or error}"
                    ) from None
                if now - said >= _BETWEEN_LINES:
                    _log.warning("waiting for rank 0 to come to %s", where)
                    said = now
                time.sleep(_BETWEEN_TRIES)


@contextmanager
def open_meeting(place: Place) -> Iterator[Meeting]:
    """A meeting that holds its port while the body runs.

    Raises:
        PortError: on rank 0, if its TCP port can't be opened.
    """
    if place.world == place.per_node and not _agent_holds_store():
        # Whatever the host's name is, torch's store then listens only on this host.
        os.environ["MASTER_ADDR"] = place.address
    meeting = Meeting(place)
    try:
        yield meeting
    finally:
        meeting.close()


def _agent_holds_store() -> bool:
    """Whether torchrun's agent holds the store. It lives longer than the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
