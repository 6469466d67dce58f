# SPDX-License-Identifier: Apache-2.0
"""Runs pods as their manifests say, with podman: what kubelet does, as far as pods here ask for it.

A field that is neither carried out nor known to say nothing to a single machine is an error, so
that no manifest can ask for something that the tests leave out.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k8s_pods import quantity
from podman import podman

#: About schedulers, accounts, pulls and what is shown: nothing of it changes what a container does.
_IGNORED = {
    "affinity",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "fsGroupChangePolicy",
    "imagePullPolicy",
    "ports",
    "restartPolicy",
    "serviceAccountName",
    "terminationMessagePolicy",
    "tolerations",
    "topologySpreadConstraints",
}
#: How much of a log's end kubelet takes for a termination message: lines, bytes.
_MESSAGE = (80, 2048)


@dataclass(frozen=True)
class Pod:
    """A pod that was started.

    Attributes:
        name: of its container.
        folder: where its volumes lie, each under its name.
        grace: seconds between SIGTERM and SIGKILL.
        container: of its specification.
    """

    name: str
    folder: Path
    grace: int
    container: Mapping[str, Any]

    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        state = json.loads(podman("inspect", "--format", "{{json .State}}", self.name))
        return None if state["Running"] else int(state["ExitCode"])

    def log(self) -> str:
        """All that it wrote, to both streams."""
        return podman("logs", self.name, both=True)

    def message(self) -> str:
        """What kubelet would keep of a pod that failed."""
        lines, size = _MESSAGE
        return "\n".join(self.log().splitlines()[-lines:])[-size:]

    def get(self, port: str, path: str) -> tuple[int, str]:
        """What it answers to a request by HTTP: status and text; (0, why) where it doesn't.

        Args:
            port: name of one of the container's ports.
            path: of the page.
        """
        (number,) = (p["containerPort"] for p in self.container["ports"] if p["name"] == port)
        networks = podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", self.name)
        ((_, network),) = json.loads(networks).items()
        try:
            with urllib.request.urlopen(
                f"http://{network['IPAddress']}:{number}{path}", timeout=60
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def probe(self, name: str) -> int:
        """Does one probe of the specification, and returns the status."""
        probe = self.container[name]["httpGet"]
        assert probe.keys() == {"path", "port"}, probe
        return self.get(**probe)[0]

    def kill(self) -> None:
        """As when memory runs out."""
        podman("kill", "--signal", "KILL", self.name)

    def evict(self) -> None:
        """SIGTERM, and SIGKILL when the grace period is over."""
        podman("stop", "--time", self.grace, self.name, timeout=self.grace + 60)

    def remove(self) -> None:
        """Leaves nothing of it but its volumes."""
        podman("rm", "--force", "--time", "0", self.name, check=False)


@dataclass(frozen=True)
class Node:
    """What a pod meets on a machine.

    Attributes:
        network: that joins pods.
        folder: for their volumes.
        objects: ConfigMaps and Secrets: (kind, name) -> key -> text.
        flags: further flags of `podman run`.
    """

    network: str
    folder: Path
    objects: Mapping[tuple[str, str], Mapping[str, str]]
    flags: tuple[str, ...] = ()

    def start(
        self, spec: dict[str, Any], name: str, hostname: str, variables: Mapping[str, str]
    ) -> Pod:
        """Starts a pod of one container.

        Args:
            spec: a PodSpec.
            name: that no other pod has.
            hostname: of the pod, by which others reach it below the spec's subdomain.
            variables: that the pod's controller adds.

        Raises:
            AssertionError: the specification asks for something that is not done here.
        """
        (container,) = spec["containers"]
        grace = spec["terminationGracePeriodSeconds"]
        pod = Pod(name, self.folder / name, grace, container)
        aliases = [hostname, f"{hostname}.{spec['subdomain']}"]
        words = ["--name", name, "--hostname", hostname, "--network", self.network]
        words += [word for alias in aliases for word in ("--network-alias", alias)]
        words += ["--stop-timeout", str(pod.grace), "--pull", "never", *self.flags]
        words += _security(spec["securityContext"], container["securityContext"])
        words += _limits(container["resources"]["limits"])
        words += self._volumes(spec, container, pod.folder)
        for key, value in {**self._environment(container), **variables}.items():
            words += ["--env", f"{key}={value}"]
        _refuse_unknown(
            spec,
            {"containers", "securityContext", "subdomain", "terminationGracePeriodSeconds"},
            {"volumes"},
        )
        _refuse_unknown(
            container,
            {"args", "env", "envFrom", "image", "name", "resources", "securityContext"},
            # Probes are done by the tests, when they want to know.
            {"volumeMounts", "startupProbe", "livenessProbe"},
        )
        podman("run", "--detach", *words, container["image"], *container["args"])
        return pod

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container["envFrom"]:
            (reference,) = source.values()
            assert source.keys() == {"secretRef"}, source
            secret = self.objects.get(("Secret", reference["name"]))
            assert secret is not None or reference["optional"], reference
            found |= secret or {}
        for one in container["env"]:
            if "valueFrom" in one:
                reference = one["valueFrom"]["secretKeyRef"]
                secret = self.objects.get(("Secret", reference["name"]))
                assert secret is not None or reference["optional"], reference
                found |= {one["name"]: secret[reference["key"]]} if secret else {}
                continue
            assert one.keys() == {"name", "value"}, one
            found[one["name"]] = one["value"]
        return found

    def _volumes(
        self, spec: dict[str, Any], container: dict[str, Any], folder: Path
    ) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume = {k: v for k, v in volumes[mount["name"]].items() if k != "name"}
            assert not mount.keys() - {"name", "mountPath", "readOnly"}, mount
            ((kind, what),) = volume.items()
            if kind == "emptyDir" and what.get("medium") == "Memory":
                size = int(quantity(what["sizeLimit"]) or 0)
                yield from ("--tmpfs", f"{mount['mountPath']}:rw,size={size},mode=1777")
                continue
            host = folder / mount["name"]
            host.mkdir(parents=True)
            if kind == "configMap":
                for name, text in self.objects["ConfigMap", what["name"]].items():
                    (host / name).write_text(text)
            else:
                assert kind == "emptyDir", volume
                shutil.chown(host, group=spec["securityContext"]["fsGroup"])
                host.chmod(0o2777)
            ending = "ro" if mount.get("readOnly") else "rw"
            yield from ("--volume", f"{host}:{mount['mountPath']}:{ending}")


def _security(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] != 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}  # podman's default as well
    yield from ("--user", f"{pod['runAsUser']}:{pod['runAsGroup']}")
    yield from ("--group-add", str(pod["fsGroup"]))
    assert container["allowPrivilegeEscalation"] is False
    yield from ("--security-opt", "no-new-privileges")
    assert container["readOnlyRootFilesystem"] is True
    yield from ("--read-only", "--read-only-tmpfs=false")
    for capability in container["capabilities"]["drop"]:
        yield from ("--cap-drop", capability)
    _refuse_unknown(pod, {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"})
    _refuse_unknown(
        container, {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}
    )


def _limits(limits: dict[str, str]) -> Iterator[str]:
    yield from ("--cpus", str(quantity(limits["cpu"])))
    yield from ("--memory", str(int(quantity(limits["memory"]) or 0)))
    _refuse_unknown(limits, {"cpu", "memory", "ephemeral-storage"})


def _refuse_unknown(found: Mapping[str, Any], *known: set[str]) -> None:
    unknown = found.keys() - _IGNORED - set().union(*known)
    assert not unknown, f"not carried out by the tests: {sorted(unknown)}"
