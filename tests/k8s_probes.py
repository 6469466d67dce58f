# SPDX-License-Identifier: Apache-2.0
"""A pod's probes and its port of metrics, against the run that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ahpa_scale.config.schema import Config

#: Seconds that a start may take before it answers: five minutes of waiting for node 0's address
#: (`ahpa-scale launch --resolve-timeout`), and as much for a machine that is slow.
_START = 600
#: Seconds from a hang's end by the watch to the pod's: verdicts, stacks, launchers.
_ENDING = 120
#: Kubernetes' own.
_DEFAULTS = {"periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3}


def probe_problems(container: dict[str, Any], config: Config) -> Iterator[str]:
    """What is wrong with them.

    Args:
        container: of a pod that launches ranks.
        config: of the run.
    """
    port = config.logging.metrics_port
    ports = {one["name"]: (one["containerPort"], one["protocol"]) for one in container["ports"]}
    if ports.get("metrics") != (None if port is None else (port, "TCP")):
        yield f"port metrics is {ports.get('metrics')}, and logging.metrics_port is {port}"
    for kind in ("startupProbe", "livenessProbe"):
        probe = container.get(kind)
        if probe is None:
            yield f"{kind} is missing"
            continue
        asked = probe.get("httpGet", {})
        if (asked.get("path"), asked.get("port")) != ("/healthz", "metrics"):
            yield f"{kind} must get /healthz from the port metrics"
        if asked.get("scheme", "HTTP") != "HTTP":
            yield f"{kind}: nothing speaks TLS there"
        period, timeout, times = (probe.get(name, _DEFAULTS[name]) for name in _DEFAULTS)
        if timeout < 5 or timeout > period:
            yield f"{kind}: timeoutSeconds {timeout}: a busy rank takes seconds to answer"
        least = _START if kind == "startupProbe" else _ENDING
        if period * times < least:
            yield f"{kind} kills after {period * times} s, and needs {least}"
    if container.get("readinessProbe"):
        yield "readinessProbe: nobody sends traffic to ranks"
    if config.watch.hang is None:
        yield "watch.hang is null, so /healthz never fails"
