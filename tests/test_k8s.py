# SPDX-License-Identifier: Apache-2.0
"""The manifests: valid, strictly, on the oldest Kubernetes and the newest; right in what schemas
can't see; and planted mistakes are all refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from job import ROOT
from k8s_checks import environment, problems, works
from k8s_jobs import AGAIN, COUNTED, HOPELESS, documented, verdict
from k8s_manifests import (
    K8S,
    OVERLAYS,
    VERSIONS,
    Document,
    applied,
    base,
    documents,
    named,
    overlay,
    schema_problems,
)
from k8s_mistakes import GONE, MISTAKES, planted

from ahpa_scale import exits
from ahpa_scale.launch.command import command_for
from ahpa_scale.launch.environment import from_environment

EXTRAS = sorted((K8S / "extras").glob("*.yaml"))
TOOL = ROOT / "tools/k8s_settings.py"


def test_the_versions_are_the_oldest_supported_and_the_newest_known():
    known = kubernetes_validate.utils.all_versions()
    assert VERSIONS[0] == "1.29"
    assert VERSIONS[-1] == known[-1]
    assert known.index(VERSIONS[-1]) >= 8  # 1.25 is the first


def test_what_is_applied_is_valid_and_right():
    assert problems(documents(*applied())) == []


def test_what_is_applied_is_what_kustomize_makes_of_the_base():
    assert {p.name for p in applied()} == {p.name for p in (K8S / "base").glob("[0-9]*.yaml")}

    def order(doc: Document) -> tuple[str, str]:
        return doc["kind"], doc["metadata"]["name"]

    assert sorted(documents(*applied()), key=order) == sorted(base(), key=order)


def test_every_file_that_is_applied_is_the_bases():
    for path in applied():
        assert path.resolve() == (K8S / "base" / path.name).resolve()


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_and_right(name: str):
    assert problems(overlay(name)) == []


def test_the_promised_overlays_are_there():
    assert set(OVERLAYS) == {"cpu", "eks", "gke", "jobset", "kueue", "rdma", "trainjob"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("--parts=4", "--parts=3", "--parts 3, completions 4"),
        ("completions: 4", "completions: 5", "completions 5"),
        ("--part=$(JOB_COMPLETION_INDEX)", "--part=0", "must be the pod's index"),
        ("completionMode: Indexed", "completionMode: NonIndexed", "should be a valid integer"),
    ],
)
def test_a_mistake_in_parallel_preparation_is_refused(old, new, problem):
    text = (K8S / "extras/prepare.yaml").read_text()
    assert text.count(old) == 1
    (doc,) = yaml.safe_load_all(text.replace(old, new))
    assert any(problem in found for found in problems([doc], base()))


@pytest.mark.parametrize("path", EXTRAS, ids=lambda path: path.stem)
def test_an_extra_is_valid_and_right(path: Path):
    docs = documents(path)
    assert problems(docs, base()) == []
    pod = next(works(docs))
    # Not counted by the budget, and not let in among the ranks.
    assert pod.labels["app.kubernetes.io/component"] == path.stem != "train"


@pytest.fixture(scope="module")
def shipped() -> list[Document]:
    return documents(*applied())


@pytest.mark.parametrize(
    ("target", "path", "value", "told"),
    [pytest.param(*m, id=f"{m[0]}: {m[1]}: {'gone' if m[2] is GONE else m[2]}") for m in MISTAKES],
)
def test_a_planted_mistake_is_refused(shipped, target, path, value, told):
    found = problems(planted(shipped, target, path, value))
    assert any(told in problem for problem in found), found


def test_there_are_enough_mistakes_and_all_differ():
    assert len({(target, path, str(value)) for target, path, value, _ in MISTAKES}) >= 30
    assert len(MISTAKES) == len({str(m) for m in MISTAKES})


@pytest.mark.parametrize(
    ("kind", "name", "path", "value", "told"),
    [
        ("jobset", "JobSet", "spec.replicatedJob", [], "unknown field"),
        ("jobset", "JobSet", "spec.network.enableDNSHostname", True, "unknown field"),
        ("jobset", "JobSet", "spec.failurePolicy.maxRestarts", "many", "maxRestarts"),
        ("jobset", "JobSet", "spec.failurePolicy.rules.0.action", "Fail", "is none of"),
        ("jobset", "JobSet", "spec.failurePolicy.rules.0", GONE, "exit code 2 gives Restart"),
        ("jobset", "JobSet", "spec.failurePolicy.restartStrategy", "All", "restartStrategy"),
        ("trainjob", "TrainJob", "spec.trainer.numNode", 8, "unknown field"),
        ("trainjob", "TrainJob", "spec.trainer.numNodes", 4, "numNodes"),
        ("trainjob", "TrainJob", "spec.trainer.numProcPerNode", 4, "numProcPerNode"),
        ("trainjob", "TrainJob", "spec.runtimeRef.name", "torch", "runtimeRef"),
        ("trainjob", "TrainingRuntime", "spec.mlPolicies", {}, "unknown field"),
    ],
)
def test_a_mistake_in_a_custom_resource_is_refused(kind, name, path, value, told):
    found = problems(planted(overlay(kind), name, path, value))
    assert any(told in problem for problem in found), found


def test_an_unknown_kind_is_no_mere_warning():
    cron = {"apiVersion": "batch/v1", "kind": "CronTab", "metadata": {"name": "x"}}
    assert any("unknown kind" in problem for problem in schema_problems(cron))


@pytest.mark.parametrize("name", [None, *OVERLAYS])
def test_each_pod_becomes_composers_launcher_of_its_node(name: str | None):
    """From the rendered manifest alone, with the variables that controllers add."""
    docs = overlay(name) if name else base()
    (work,) = works(docs)
    assert work.job is not None
    nodes = work.job["completions"]
    words = work.spec["containers"][0]["args"]
    nproc = int(words[words.index("--nproc") + 1])
    run = words[words.index("train.py") :]
    for index in range(nodes):
        placement = from_environment(environment(work, index, nodes), nproc)
        told = str(command_for(placement, run[0], run[1:]))
        assert f"--nproc {nproc} --world_size {nodes * nproc} --node_rank {index} " in told
        assert told.endswith(" ".join(run))


def test_the_exit_codes_of_the_readme_are_those_of_the_policy():
    """Whatever the manual says of a code, the Job does."""
    job = named(base(), "Job")["spec"]
    told = documented()
    assert set(told) == {0, 1} | HOPELESS | COUNTED | AGAIN
    for code, meaning in told.items():
        if code == 0:
            continue
        action, _ = verdict(job, code)
        hopeless = meaning in ("fails again", "meets the same trouble again")
        assert (action == "FailJob") is hopeless, code
        assert (action == "Ignore") is (not hopeless and code not in {1, *COUNTED}), code


def test_the_exit_codes_of_the_runbook_are_those_of_the_policy():
    rows = re.findall(r"^\| ([\d, ]+)[^|]* \| ([^|]+) \|$", (K8S / "README.md").read_text(), re.M)
    told = {frozenset(map(int, re.findall(r"\d+", codes))): then for codes, then in rows}
    assert set(told) == {frozenset(HOPELESS), frozenset(AGAIN), frozenset({1, *COUNTED})}
    assert "fails at once" in told[frozenset(HOPELESS)]
    assert "uncounted" in told[frozenset(AGAIN)]
    assert "`backoffLimit`" in told[frozenset({1, *COUNTED})]


def test_an_evaluation_goes_on_unless_its_input_is_wrong():
    job = named(documents(K8S / "extras/evaluate.yaml"), "Job")["spec"]
    found = [verdict(job, code)[0] for code in (2, exits.PREEMPTED, 1)]
    assert found == ["FailJob", "Ignore", "Count"]
    assert verdict(job, 137, disrupted=True)[0] == "Ignore"
    assert "activeDeadlineSeconds" not in job


def test_an_overlay_changes_what_it_says_and_no_more():
    plain = named(base(), "Job")
    queued = named(overlay("kueue"), "Job")
    assert queued["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name") == "training"
    assert queued == plain
    devices = named(overlay("rdma"), "Job")["spec"]["template"]["spec"]["containers"][0]
    assert devices["resources"]["limits"]["rdma/hca_shared_devices_a"] == "8"
    for cloud, annotation in (("eks", "eks.amazonaws.com/role-arn"), ("gke", "iam.gke.io/")):
        account = named(overlay(cloud), "ServiceAccount")["metadata"]["annotations"]
        assert [key for key in account if key.startswith(annotation)]


def test_the_config_map_is_the_shipped_yaml():
    for docs, run in ((base(), "dit-xl-ahpa"), (overlay("cpu"), "demo-ahpa")):
        text = (ROOT / f"yamls/{run}.yaml").read_text()
        assert named(docs, "ConfigMap")["data"] == {f"{run}.yaml": text}


def settle(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *words, folder], capture_output=True, text=True, check=False
    )


def test_the_settings_stand_in_the_manifests():
    done = settle(K8S, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_setting_is_used_and_every_value_is_marked():
    names = set(re.findall(r"^([A-Z_]+)=", (K8S / "settings.env").read_text(), re.M))
    marks = "".join(path.read_text() for path in K8S.rglob("*.yaml"))
    used = set(re.findall(r"\$\{([A-Z_]+)\}", " ".join(re.findall("# setting: .*", marks))))
    assert used == (names | {"NODES_BUT_ONE", "RETRIES"})
    unmarked = [line for line in marks.splitlines() if "YOUR-" in line and "# setting:" not in line]
    shown = (ROOT / "yamls/dit-xl-ahpa.yaml").read_text()
    assert [line for line in unmarked if line.strip() not in shown] == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(K8S, tmp_path / "k8s", symlinks=True))


def change(folder: Path, **settings: str) -> None:
    path = folder / "settings.env"
    text = path.read_text()
    for name, value in settings.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
        assert count == 1, name
    path.write_text(text)


def test_a_changed_setting_reaches_every_place(copied: Path):
    change(
        copied, NODES="2", GPUS="4", RUN="dit-b-ahpa", IMAGE="r.example.org/i@sha256:" + "0" * 64
    )
    assert settle(copied, "--check").returncode == 1
    assert settle(copied).returncode == 0
    assert settle(copied, "--check").returncode == 0
    docs = documents(*applied(copied))
    assert problems(docs) == []
    job = named(docs, "Job")["spec"]
    assert (job["completions"], named(docs, "PodDisruptionBudget")["spec"]["minAvailable"]) == (
        2,
        1,
    )
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"][5] == "/config/dit-b-ahpa.yaml"
    assert container["args"][10].endswith("/checkpoints/dit-b-ahpa")
    trainer = yaml.safe_load((copied / "overlays/trainjob/trainjob.yaml").read_text())["spec"]
    assert trainer["trainer"] == {"numNodes": 2, "numProcPerNode": 4}
    for path in (copied / "extras").glob("*.yaml"):
        assert "r.example.org/i@sha256:" in path.read_text()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"NODES": "0"}, "NODES must be a whole number"),
        ({"GPUS": "eight"}, "GPUS must be a whole number"),
        ({"RUN": "dit-xxl"}, "RUN=dit-xxl: no yamls/dit-xxl.yaml"),
        ({"IMAGE": "a: b"}, "is not NAME=VALUE"),
        ({"QUEUE": ""}, "is not NAME=VALUE"),
    ],
)
def test_a_setting_that_can_not_be_is_one_line_and_changes_nothing(copied, settings, told):
    change(copied, **settings)
    before = {path: path.read_text() for path in copied.rglob("*.yaml")}
    done = settle(copied)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.read_text() for path in before} == before


def test_no_secret_and_no_machine_path_is_in_the_files():
    for path in K8S.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "kind: Secret" not in text
            assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|/home/|/root/|/work/", text), path
