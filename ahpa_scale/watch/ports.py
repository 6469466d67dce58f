# SPDX-License-Identifier: Apache-2.0
"""Rank 0's two ports: UDP for the watch, TCP for torch's store. If all ranks are on one host, other
hosts can't reach them.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import closing, suppress

from ahpa_scale.errors import UserError
from ahpa_scale.watch.place import LOOPBACK, Place

#: Seconds to try: after a process ends, its loader processes may hold its port for a while.
_PATIENCE = 10.0
_BETWEEN_TRIES = 0.5
#: Asks who listens on a UDP port. A watch answers; leftovers of a dead job don't.
QUESTION, ANSWER = b"AHPA who is there?", b"AHPA a watch"
_UDP, _TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM


class PortError(UserError):
    """Rank 0 can't open one of its ports."""


def udp_port(place: Place) -> socket.socket:
    """A socket bound to the watch's port.

    Raises:
        PortError: the port can't be opened.
    """
    return _patiently(place, place.port, _UDP, "watch.port: UDP port")


def tcp_port(place: Place) -> socket.socket:
    """A socket that listens on the store's port.

    Raises:
        PortError: the port can't be opened.
    """
    return _patiently(place, place.store_port, _TCP, "MASTER_PORT: TCP port")


def _patiently(place: Place, port: int, kind: socket.SocketKind, name: str) -> socket.socket:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _bound(port, kind, loopback=place.on_loopback)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            lives = taken and _watch_answers(place.port)
            if taken and not lives and time.monotonic() < until:
                time.sleep(_BETWEEN_TRIES)
                continue
            why = "another job has it" if lives else error.strerror
            raise PortError(
                f"{name} {port} can't be had on rank 0's host: {why}; give each job of a host a "
                "MASTER_PORT of its own (composer --master_port, ahpa-scale launch --master-port)"
            ) from None


def _bound(port: int, kind: socket.SocketKind, *, loopback: bool) -> socket.socket:
    if loopback:
        return _bound_to(socket.AF_INET, LOOPBACK, port, kind)
    if socket.has_dualstack_ipv6():
        try:
            return _bound_to(socket.AF_INET6, "", port, kind)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            # The kernel supports IPv6, but it is switched off.
    return _bound_to(socket.AF_INET, "", port, kind)


def _bound_to(
    family: socket.AddressFamily, host: str, port: int, kind: socket.SocketKind
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == _TCP:
            # Old connections of an ended job must not block the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        if kind == _TCP:
            sock.listen(socket.SOMAXCONN)
    except OSError:
        sock.close()
        raise
    return sock


def _watch_answers(port: int) -> bool:
    """Whether the watch of a live job answers on this port of this host."""
    with closing(socket.socket(socket.AF_INET, _UDP)) as asking, suppress(OSError):
        asking.settimeout(_BETWEEN_TRIES)
        asking.connect((LOOPBACK, port))
        asking.send(QUESTION)
        return asking.recv(len(ANSWER) + 1) == ANSWER
    return False
