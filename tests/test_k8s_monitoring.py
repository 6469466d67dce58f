# SPDX-License-Identifier: Apache-2.0
"""k8s/extras/monitoring: what it asks for is what runs serve, and alerts come when they should."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from job import ROOT
from k8s_manifests import K8S, Document, base, named, rendered, schema_problems
from k8s_mistakes import GONE, planted
from k8s_monitoring import dashboard_problems, monitoring_problems, served

FOLDER = K8S / "extras/monitoring"
PROMTOOL = shutil.which("promtool", path=f"{os.environ['PATH']}:{ROOT}/.cache/promtool")
MONITOR, RULES = "ServiceMonitor", "PrometheusRule"
_RULE = "spec.groups.0.rules"

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: bash tools/get_promtool.sh .cache/promtool"
)


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    return rendered(FOLDER)


@pytest.fixture(scope="module")
def service() -> Document:
    return named(base(), "Service", "ahpa-scale-metrics")


@pytest.fixture(scope="module")
def dashboard(docs) -> dict[str, Any]:
    return json.loads(named(docs, "ConfigMap")["data"]["dashboard.json"])


def test_all_of_it_is_valid_and_right(docs, service, dashboard):
    assert {doc["kind"] for doc in docs} == {MONITOR, RULES, "ConfigMap"}
    assert list(monitoring_problems(docs, service)) == []
    assert list(dashboard_problems(dashboard, service)) == []
    config = named(docs, "ConfigMap")
    assert list(schema_problems(config)) == []
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {doc["metadata"]["namespace"] for doc in docs} == {"ahpa-scale"}


@pytest.mark.parametrize(
    ("target", "path", "value", "told"),
    [
        (MONITOR, "apiVersion", "monitoring.coreos.com/v2", "apiVersion"),
        (MONITOR, "metadata.namespace", "monitoring", "its own namespace"),
        (MONITOR, "spec.selectors", {}, "unknown field selectors"),
        (MONITOR, "spec.selector", GONE, "selector is missing"),
        (MONITOR, "spec.selector.matchLabels.app.kubernetes.io/component", "x", "does not select"),
        (MONITOR, "spec.selector.matchLabels", {}, "does not select"),
        (MONITOR, "spec.endpoints.0.port", "metric", "none of the Service's"),
        (MONITOR, "spec.endpoints.0.port", 9400, "must be str"),
        (MONITOR, "spec.endpoints.0.path", "/metric", "not served"),
        (MONITOR, "spec.endpoints.0.interval", "5s", "longer than interval"),
        (MONITOR, "spec.endpoints.0.interval", "30 s", "no duration"),
        (RULES, f"{_RULE}.0.expr", "time() - ahpa_last_event > 900", "nobody serves ahpa_last"),
        (RULES, f"{_RULE}.0.expr", "ahpa_loss{kind='x'} > 1", "no label"),
        (RULES, f"{_RULE}.0.expr", 'up{job="ahpa-scale"} == 0', "named as the Service"),
        (RULES, f"{_RULE}.0.expr", "max by (host) (ahpa_batch) > 1", "label host"),
        (RULES, f"{_RULE}.0.expr", "vector(1)", "no metric"),
        (RULES, f"{_RULE}.0.for", "two minutes", "no duration"),
        (RULES, f"{_RULE}.0.alerts", "x", "unknown field alerts"),
        (RULES, f"{_RULE}.0.alert", "AhpaNoBatch", "there twice"),
        (RULES, f"{_RULE}.0.labels.severity", "page", "severity"),
        (RULES, f"{_RULE}.0.labels.team", 7, "words to words"),
    ],
)
def test_a_planted_mistake_is_refused(docs, service, target, path, value, told):
    found = list(monitoring_problems(planted(docs, target, path, value), service))
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize(
    ("panel", "key", "value", "told"),
    [
        (0, "title", "Loss", None),
        (0, "gridPos", {"x": 0, "y": 0, "w": 5, "h": 4}, "lies over"),
        (0, "gridPos", {"x": 22, "y": 60, "w": 4, "h": 4}, "wider"),
        (0, "id", 2, "one id"),
        (0, "targets", [], "asks nothing"),
        (0, "expr", 'max(ahpa_batches{namespace="$namespace"})', "nobody serves ahpa_batches"),
        (0, "expr", 'max(ahpa_batch{namespace="$space"})', "no variable space"),
        (0, "expr", 'max(ahpa_batch{part="total"})', "no label"),
    ],
)
def test_a_mistake_in_the_dashboard_is_refused(dashboard, service, panel, key, value, told):
    changed = copy.deepcopy(dashboard)
    place = changed["panels"][panel]
    (place["targets"][0] if key == "expr" else place)[key] = value
    found = list(dashboard_problems(changed, service))
    assert found == [] if told is None else any(told in problem for problem in found), found


def test_the_runbook_and_the_manual_tell_of_all_there_is(docs):
    rules = named(docs, RULES)["spec"]["groups"][0]["rules"]
    told = re.findall(r"^\| `(Ahpa\w+)` \|", (K8S / "README.md").read_text(), re.M)
    assert told == [rule["alert"] for rule in rules]
    rows = re.findall(r"^\| (`ahpa_.*?) \| ", (ROOT / "docs/watching.md").read_text(), re.M)
    names = re.findall(r"`(ahpa_\w+)(?:\{(\w+)\})?`", " ".join(rows))
    assert {name for name, _ in names} == set(served())
    assert {name: {label} for name, label in names if label} == {
        name: labels for name, labels in served().items() if labels and name != "ahpa_run_info"
    }


def test_every_metric_is_looked_at(docs, dashboard):
    """One that is served and shown nowhere is missed by nobody when it goes."""
    asked = json.dumps([named(docs, RULES)["spec"], dashboard["panels"]])
    assert [name for name in served() if name not in asked] == []


@pytest.fixture
def rules(docs, tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(named(docs, RULES)["spec"]))
    return path


def promtool(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in (PROMTOOL, *words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_understands_the_rules_and_the_dashboards_queries(rules, docs, dashboard):
    assert "8 rules found" in promtool("check", "rules", rules)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = [{"record": f"panel:{n}", "expr": q} for n, q in enumerate(queries)]
    text = yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]})
    rules.write_text(text.replace("$namespace", "ahpa-scale"))
    assert f"{len(queries)} rules found" in promtool("check", "rules", rules)


#: Alert, series a minute apart, minute, and whether it fires then.
_POD = 'namespace="ahpa-scale",pod="p"'
CASES = [
    ("AhpaHangs", {"ahpa_last_event_timestamp_seconds{%s}": "0+60x60"}, 60, False),
    ("AhpaHangs", {"ahpa_last_event_timestamp_seconds{%s}": "0x60"}, 16, False),
    ("AhpaHangs", {"ahpa_last_event_timestamp_seconds{%s}": "0x60"}, 18, True),
    ("AhpaNoBatch", {"ahpa_batch{%s}": "0x10 1+1x50"}, 60, False),
    ("AhpaNoBatch", {"ahpa_batch{%s}": "0+1x20 20x60"}, 30, False),
    ("AhpaNoBatch", {"ahpa_batch{%s}": "0+1x20 20x60"}, 55, True),
    ("AhpaNoCheckpoint", {"ahpa_start_timestamp_seconds{%s}": "0x600"}, 200, False),
    ("AhpaNoCheckpoint", {"ahpa_start_timestamp_seconds{%s}": "0x600"}, 260, True),
    ("AhpaNoCheckpoint", {"ahpa_start_timestamp_seconds{%s}": "0x600",
                          "ahpa_checkpoint_timestamp_seconds{%s}": "6000x600"}, 260, False),
    ("AhpaNoCheckpoint", {"ahpa_start_timestamp_seconds{%s}": "0x600",
                          "ahpa_checkpoint_timestamp_seconds{%s}": "6000x600"}, 400, True),
    ("AhpaLossNotFinite", {'ahpa_loss{part="total",%s}': "0.5x60"}, 30, False),
    ("AhpaLossNotFinite", {'ahpa_loss{part="total",%s}': "NaN " * 60}, 30, True),
    ("AhpaLossNotFinite", {'ahpa_loss{part="total",%s}': "Inf " * 60}, 30, True),
    ("AhpaBadBatches", {"ahpa_nonfinite_batches_total{%s}": "0x60"}, 30, False),
    ("AhpaBadBatches", {"ahpa_nonfinite_batches_total{%s}": "0x20 1x40"}, 25, True),
    ("AhpaBadBatches", {"ahpa_nonfinite_batches_total{%s}": "0x20 1x40"}, 50, False),
    ("AhpaWaitsForData", {"ahpa_data_wait_seconds_total{%s}": "0+3x60",
                          "ahpa_loop_seconds_total{%s}": "0+60x60"}, 50, False),
    ("AhpaWaitsForData", {"ahpa_data_wait_seconds_total{%s}": "0+30x60",
                          "ahpa_loop_seconds_total{%s}": "0+60x60"}, 50, True),
    ("AhpaLowMfu", {"ahpa_mfu{%s}": "0.4x90"}, 80, False),
    ("AhpaLowMfu", {"ahpa_mfu{%s}": "0.1x90"}, 80, True),
    ("AhpaNotScraped", {'up{job="ahpa-scale-metrics",%s}': "1x60"}, 30, False),
    ("AhpaNotScraped", {'up{job="ahpa-scale-metrics",%s}': "0x60"}, 30, True),
]  # fmt: skip


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before(rules, tmp_path, docs):
    names = [rule["alert"] for rule in named(docs, RULES)["spec"]["groups"][0]["rules"]]
    told = {(alert, fires) for alert, _, _, fires in CASES}
    assert told == {(name, fires) for name in names for fires in (True, False)}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": s % _POD, "values": v} for s, v in series.items()],
            # The alert itself is a series; its annotations have numbers that are none of this.
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for alert, series, minute, fires in CASES
    ]
    path = tmp_path / "test.yaml"
    written = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
    path.write_text(yaml.safe_dump(written))
    promtool("test", "rules", path)
