"""What the dashboard and the rules ask for is what the two services export."""

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

import cloud_service.metrics
import cloud_service.sample_metrics
import edge_node.door_metrics
import edge_node.link_metrics
import edge_node.metrics
import edge_node.outbox_metrics
import inference_core.vitals
from deploy.assemble import ROOT
from deploy.check_dashboard import DASHBOARDS, Query, panels, queries
from inference_core.bundle import load_bundle
from tests.deploy.promql import Reads, reads

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
DECLARED: tuple[type, ...] = (
    edge_node.metrics.Metrics,
    edge_node.link_metrics.LinkMetrics,
    edge_node.door_metrics.DoorMetrics,
    edge_node.outbox_metrics.OutboxMetrics,
    inference_core.vitals.Vitals,
    cloud_service.metrics.Metrics,
    cloud_service.sample_metrics.SampleMetrics,
)
BOUND = "model:tandem_certificate_bound"
METRICS = {"Counter", "Enum", "Gauge", "Histogram", "Info", "Summary"}
# What Prometheus adds to every scraped series.
TARGET = {"job", "instance"}


@cache
def declared() -> dict[str, set[str]]:
    """Every series of both services, with its labels."""
    series: dict[str, set[str]] = {"up": set(TARGET)}
    for metrics in DECLARED:
        for metric in vars(metrics(CollectorRegistry())).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                for suffix in SUFFIXES[family.type]:
                    labels = series.setdefault(family.name + suffix, set(TARGET))
                    labels.update(metric._labelnames, {"le"} if suffix == "_bucket" else ())
    return series


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def every_query() -> list[Query]:
    return [query for board in BOARDS.values() for query in queries(board)]


def called(part: ast.AST) -> set[str]:
    """The names that `part` calls."""
    calls = [node.func for node in ast.walk(part) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


def test_every_class_that_declares_metrics_is_known_here() -> None:
    declaring = {
        (f"{package}.{path.stem}", part.name)
        for package in ("edge_node", "cloud_service", "inference_core")
        for path in (ROOT / package).glob("*.py")
        for part in ast.parse(path.read_text()).body
        if isinstance(part, ast.ClassDef) and called(part) & METRICS
    }
    assert declaring == {(metrics.__module__, metrics.__name__) for metrics in DECLARED}


def problems(found: Reads, known: dict[str, set[str]]) -> list[str]:
    unknown = [f"no metric {name}" for name in found.metrics if name not in known]
    wrong = [
        f"{name} has no label {label}"
        for name, labels in found.metrics.items()
        for label in sorted(labels - known.get(name, labels))
    ]
    usable = set[str]().union(*(known.get(name, set()) for name in found.metrics))
    return unknown + wrong + [f"no label {label} to group by" for label in sorted(found.grouping - usable)]


def test_the_reader_of_promql() -> None:
    expr = (
        'histogram_quantile(0.99, sum by (le, a) (rate(x_bucket{m=~"$m(\\\\..+)?", b!="}"}[1m])))'
        ' / on(a) (1e3 * y:z{} offset 5m) and up{job="x"} == 1 or bare > 0'
    )
    assert reads(expr) == Reads(
        {"x_bucket": {"m", "b"}, "y:z": set(), "up": {"job"}, "bare": set()}, {"le", "a"}
    )


@pytest.mark.parametrize("query", every_query(), ids=lambda query: f"{query.panel} {query.ref}")
def test_a_panel_asks_for_what_is_exported(query: Query) -> None:
    found = reads(query.expr)
    assert found.metrics
    assert problems(found, declared()) == []


def test_rules_ask_for_what_is_exported_or_recorded() -> None:
    recorded = {rule["record"]: {"model"} for rule in rules() if "record" in rule}
    for rule in rules():
        assert problems(reads(rule["expr"]), declared() | recorded) == [], rule


def test_a_wrong_name_would_be_found() -> None:
    found = problems(
        reads('sum by (colour) (tandem_request_total{shape="x"}) + tandem_threshold{x=""}'), declared()
    )
    assert found == [
        "no metric tandem_request_total",
        "tandem_threshold has no label x",
        "no label colour to group by",
    ]


def test_what_both_services_exist_for_is_shown() -> None:
    shown = {name for query in every_query() for name in reads(query.expr).metrics}
    families = {re.sub("_(bucket|sum|count|total)$", "", name) for name in shown}
    exported = {re.sub("_(bucket|sum|count|total)$", "", name) for name in declared()}
    # the calls started are in the calls handled; up is an alert
    assert exported - families == {"grpc_server_started", "up"}


def test_every_alert_tells_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            assert "for" in rule


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    command = ["promtool", "test", "rules", str(PROMETHEUS / "rules.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_board
def test_every_panel_has_a_place_and_says_what_it_shows(board: dict[str, Any]) -> None:
    every = list(panels(board))
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["targets"], panel["title"]
    for one, other in combinations(every, 2):
        assert not _overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


@each_board
def test_every_panel_asks_the_data_source_that_was_chosen(board: dict[str, Any]) -> None:
    for panel in panels(board):
        for part in [panel, *panel.get("targets", ())] if panel["type"] != "row" else []:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@each_board
def test_a_dashboard_starts_on_the_provisioned_data_source(board: dict[str, Any]) -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    (variable,) = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}


def test_the_dashboards_are_told_apart_and_linked() -> None:
    for name, board in BOARDS.items():
        assert board["uid"] == name
        assert {tag for link in board["links"] for tag in link["tags"]} <= set(board["tags"])
        assert board["links"]
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


def test_the_rules_know_what_the_shipped_certificates_promise() -> None:
    promised = {rule["labels"]["model"]: rule["expr"] for rule in rules() if rule.get("record") == BOUND}
    shipped = [load_bundle(path.parent).manifest for path in (ROOT / "models").glob("*/manifest.json")]
    certificates = {manifest.model: manifest.calibration.certificate for manifest in shipped}
    assert promised == {
        model: f"vector({certificate.bound})"
        for model, certificate in certificates.items()
        if certificate is not None
    }


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert (
        provisioned["datasources"][0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    )
