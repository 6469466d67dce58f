# SPDX-License-Identifier: Apache-2.0
"""An Indexed Job over real containers: what Kubernetes' Job controller does with pods that end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from k8s_jobs import verdict
from pods import Node, Pod


@dataclass
class IndexedJob:
    """Keeps a pod running for every index that has not succeeded.

    Attributes:
        manifest: the Job, as rendered.
        node: where its pods run.
        ends: (index, exit code, what the failure policy made of it) of pods that ended.
        state: ``Running``, ``Complete`` or ``Failed``.
    """

    manifest: dict[str, Any]
    node: Node
    label: str
    ends: list[tuple[int, int, str]] = field(default_factory=list)
    pods: dict[int, Pod] = field(default_factory=dict)
    ended: list[Pod] = field(default_factory=list)
    state: str = "Running"
    _disrupted: set[str] = field(default_factory=set)
    _done: set[int] = field(default_factory=set)
    _counted: int = 0
    _started: int = 0

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def run(self, until: Callable[[], bool] = lambda: False, timeout: float = 600.0) -> None:
        """Runs it to its end, or until something has come true.

        Raises:
            TimeoutError: neither has happened in time; it has the logs.
        """
        deadline = time.monotonic() + timeout
        while not until():
            self._step()
            if self.state != "Running":
                return
            if time.monotonic() > deadline:
                logs = "\n".join(f"{p.name}:\n{p.log()[-3000:]}" for p in self.pods.values())
                raise TimeoutError(f"{self.ends}\n{logs}")
            time.sleep(0.3)

    def evict(self, index: int) -> None:
        """Takes a pod's machine away: SIGTERM, and the pod's condition says so."""
        self._disrupted.add(self.pods[index].name)
        self.pods[index].evict()

    def delete(self) -> None:
        """Ends all pods at once."""
        for pod in [*self.pods.values(), *self.ended]:
            pod.remove()

    def _step(self) -> None:
        spec = self.manifest["spec"]
        for index in set(range(spec["completions"])) - self._done - self.pods.keys():
            self._start(index)
        for index, pod in list(self.pods.items()):
            code = pod.exit_code()
            if code is not None:
                self._end(index, pod, code)
        if self.state == "Running" and len(self._done) == spec["completions"]:
            self.state = "Complete"

    def _start(self, index: int) -> None:
        self._started += 1
        self.pods[index] = self.node.start(
            self.manifest["spec"]["template"]["spec"],
            name=f"{self.label}-{index}-{self._started}",
            hostname=f"{self.name}-{index}",
            variables={"JOB_COMPLETION_INDEX": str(index)},
        )

    def _end(self, index: int, pod: Pod, code: int) -> None:
        self.ended.append(self.pods.pop(index))
        if code == 0:
            self._done.add(index)
            self.ends.append((index, 0, "Complete"))
            return
        action, _ = verdict(self.manifest["spec"], code, pod.name in self._disrupted)
        self.ends.append((index, code, action))
        self._counted += action == "Count"
        if action == "FailJob" or self._counted > self.manifest["spec"]["backoffLimit"]:
            self.state = "Failed"
            for other in self.pods.values():
                other.evict()
