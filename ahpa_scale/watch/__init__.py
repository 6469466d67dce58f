# SPDX-License-Identifier: Apache-2.0
"""The watch over all ranks of a job: one that dies or hangs ends the job, and is named.

Every rank sends rank 0 a datagram each second from a thread of its own, and rank 0 answers. Own
sockets, because torch's store and collectives can block for ever, which is what is to be noticed.
Datagrams are believed as gloo believes its connections: the nodes' network must be the job's own.
"""

from ahpa_scale.watch.guard import WatchError, is_lost_connection, place_from, watching
from ahpa_scale.watch.messages import EXIT_CODE
from ahpa_scale.watch.pulse import Pulse

__all__ = ["EXIT_CODE", "Pulse", "WatchError", "is_lost_connection", "place_from", "watching"]
