# SPDX-License-Identifier: Apache-2.0
"""How a Job takes its pods' ends, against the exit codes that this project gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from job import ROOT

from ahpa_scale import exits
from ahpa_scale.exits import TRY_AGAIN as LOST

#: A mistake in the input, as every command reports it.
MISTAKE = 2
HOPELESS = {MISTAKE, exits.STOPPED}
AGAIN = {LOST, exits.ROLL_BACK, exits.PREEMPTED, exits.CUT_SHORT}
#: Goes on as well, but a store that refuses for ever must end the job.
COUNTED = {exits.NOT_SAVED}


def documented() -> dict[int, str]:
    """The manual's table: exit code -> what the same command does then."""
    rows = re.findall(
        r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "docs/interruptions.md").read_text(), re.M
    )
    return {int(code): told.strip() for code, told in rows}


def verdict(job: dict[str, Any], code: int, disrupted: bool = False) -> tuple[str, int | None]:
    """What the Job controller does with a pod that ended so: an action, and its rule's number."""
    (container,) = job["template"]["spec"]["containers"]
    for number, rule in enumerate(job.get("podFailurePolicy", {}).get("rules", [])):
        codes = rule.get("onExitCodes")
        if codes and codes.get("containerName", container["name"]) == container["name"]:
            if code and (code in codes["values"]) is (codes["operator"] == "In"):
                return rule["action"], number
        elif disrupted and any(
            one["type"] == "DisruptionTarget" and one["status"] == "True"
            for one in rule.get("onPodConditions", [])
        ):
            return rule["action"], number
    return "Count", None


def policy_problems(owner: dict[str, Any], job: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a Job's rules."""
    spec = job["template"]["spec"]
    allowed = {"Never"} if "podFailurePolicy" in job else {"Never", "OnFailure"}
    if spec.get("restartPolicy") not in allowed:
        yield f"restartPolicy: {spec.get('restartPolicy')} is none of {sorted(allowed)}"
    if "podFailurePolicy" in job and job.get("podReplacementPolicy") != "Failed":
        yield "podReplacementPolicy must be Failed beside a podFailurePolicy"
    names = {container["name"] for container in spec["containers"]}
    for rule in job.get("podFailurePolicy", {}).get("rules", []):
        if len(rule.keys() & {"onExitCodes", "onPodConditions"}) != 1:
            yield "podFailurePolicy: a rule needs exit codes or conditions, and not both"
        codes = rule.get("onExitCodes", {})
        if codes.get("containerName") not in {None, *names}:
            yield f"podFailurePolicy: there is no container {codes['containerName']}"
        values = codes.get("values", [])
        if values != sorted(set(values)) or (codes.get("operator") == "In" and 0 in values):
            yield f"podFailurePolicy: values {values} must be sorted, different, and not 0"
    if spec["containers"][0].get("args", [])[1:2] == ["launch"]:
        yield from _training(owner, job)


def _training(owner: dict[str, Any], job: dict[str, Any]) -> Iterator[str]:
    """A Job alone starts single pods again; one of a JobSet ends, and the JobSet tells apart by the
    number of the rule.
    """
    alone = owner["kind"] == "Job"
    again = "Ignore" if alone else "FailJob"
    wanted = [*((code, False, "FailJob") for code in sorted(HOPELESS))]
    wanted += [(code, False, again) for code in sorted(AGAIN)]
    wanted += [(code, False, "Count") for code in sorted({1, *COUNTED})]
    wanted += [(143, True, again), (137, True, again), (MISTAKE, True, "FailJob")]
    for code, disrupted, action in wanted:
        found, number = verdict(job, code, disrupted)
        if found != action:
            yield f"podFailurePolicy: exit code {code} gives {found}, and {action} is wanted"
        elif not alone and (number == 0) is not (code in HOPELESS) and action != "Count":
            yield f"podFailurePolicy: exit code {code} is told by rule {number}"
    # Every pod of a job reports a last checkpoint that could not be written.
    if alone and job.get("backoffLimit", 6) < job.get("completions", 1):
        yield "backoffLimit: one incident that all pods report would end the job"
    if not alone:
        yield from _jobset(owner, job)


def _jobset(owner: dict[str, Any], job: dict[str, Any]) -> Iterator[str]:
    spec = owner["spec"] if owner["kind"] == "JobSet" else owner["spec"]["template"]["spec"]
    if job.get("backoffLimit") != 0:
        yield "backoffLimit must be 0: the JobSet starts all again"
    # As Kubernetes' Job controller words it.
    told = "Container {} for pod a/b failed with exit code {} matching FailJob rule at index {}"
    for code, action in ((MISTAKE, "FailJobSet"), (LOST, "RestartJobSetAndIgnoreMaxRestarts")):
        message = told.format("x", code, verdict(job, code)[1])
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if any(re.search(pattern, message) for pattern in patterns):
                if rule["action"] != action:
                    yield f"failurePolicy: exit code {code} gives {rule['action']}, not {action}"
                break
    if not spec["failurePolicy"].get("maxRestarts"):
        yield "failurePolicy: maxRestarts: a rank that raised once would end the job"


def train_job_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong between a TrainJob and its runtime."""
    runtimes = {d["metadata"]["name"]: d["spec"] for d in docs if d["kind"] == "TrainingRuntime"}
    for doc in docs:
        if doc["kind"] != "TrainJob":
            continue
        reference, trainer = doc["spec"]["runtimeRef"], doc["spec"]["trainer"]
        runtime = runtimes.get(reference["name"])
        if runtime is None or reference.get("kind") != "TrainingRuntime":
            yield f"TrainJob: runtimeRef: there is no {reference.get('kind')} {reference['name']}"
            continue
        (one,) = runtime["template"]["spec"]["replicatedJobs"]
        spec = one["template"]["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        step = one["template"].get("metadata", {}).get("labels", {})
        if (one["name"], container["name"]) != ("node", "node") or step != {
            "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
        }:
            yield "TrainJob: the Trainer sets PET_* in container node of job node, its step trainer"
        counts = {trainer.get("numNodes"), runtime["mlPolicy"]["numNodes"], spec["completions"]}
        if len(counts) != 1:
            yield f"TrainJob: numNodes: {sorted(map(str, counts))} differ"
        nproc = container["args"][container["args"].index("--nproc") + 1]
        if str(trainer.get("numProcPerNode")) != nproc:
            yield f"TrainJob: numProcPerNode: {trainer.get('numProcPerNode')}, and --nproc {nproc}"
