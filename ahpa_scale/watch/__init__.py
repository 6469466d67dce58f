# SPDX-License-Identifier: Apache-2.0
"""The watch over all ranks of a job. A rank that dies or hangs ends the job and is named.

Every rank sends rank 0 a datagram each second from a separate thread, and rank 0 answers. The watch
has its own sockets, because torch's store and collectives can block for ever, and it must notice
that. It trusts only datagrams sealed with the job's key, see `seal`.
"""

from ahpa_scale.watch.guard import is_lost_connection, watching
from ahpa_scale.watch.place import Place, place_from
from ahpa_scale.watch.ports import PortError, tcp_port
from ahpa_scale.watch.pulse import Pulse
from ahpa_scale.watch.seal import job_key

__all__ = [
    "Place",
    "PortError",
    "Pulse",
    "is_lost_connection",
    "job_key",
    "place_from",
    "tcp_port",
    "watching",
]
