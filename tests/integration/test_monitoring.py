"""The dashboard and the alerts against what a live server and a client expose."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest

from common.errors import ConfigError
from edge_client.experiments.metrics import ClientMetrics, serving_metrics
from edge_client.experiments.records import error_record
from tests.integration.processes import Server, generate
from tests.models import Pair
from tests.unit.experiments.fakes import unit
from tests.unit.experiments.test_report import run

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "outrider.json").read_text("utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))

Exposed = dict[str, list[dict[str, str]]]

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SELECTOR = re.compile(r"\b(outrider_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|ignoring)\s*\(([^)]*)\)")
_ADDED = {"instance", "job"}  # by Prometheus, to all it scrapes


class Query(NamedTuple):
    """Is one expression, and where it stands."""

    where: str
    expr: str


def queries() -> Iterator[Query]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield Query(variable["name"], variable["definition"])
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield Query(rule["alert"], rule["expr"])


def exposed(*texts: str) -> Exposed:
    found: Exposed = defaultdict(list)
    for text in texts:
        for name, labels in _SAMPLE.findall(text):
            found[name].append(dict(_LABEL.findall(labels)))
    return found


@pytest.fixture(scope="module")
def live(server: Server, tiny_pair: Pair) -> Exposed:
    generate(
        server.address, tiny_pair.draft, "The", "--max-new-tokens", "16", "--ignore-eos",
        "--set", "drafting.length=3", "--set", "network.pipeline=0",
    )  # fmt: skip
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        server_s = answer.read().decode()
    client = ClientMetrics()
    for record in [*run(), error_record(unit(), None, "UNAVAILABLE: gone")]:
        client.observe(record)
    return exposed(server_s, generate_latest(client.registry).decode())


def test_every_query_finds_what_it_asks_for(live: Exposed) -> None:
    wrong = []
    for where, expr in queries():
        selected = _SELECTOR.findall(expr)
        assert selected or expr.startswith("up{"), where
        labels = set(_ADDED)
        for name, matchers in selected:
            series = live.get(name)
            if not series:
                wrong.append(f"{where}: {name} is not exposed")
                continue
            labels |= set().union(*series)
            for label, sign, value in _MATCHER.findall(matchers):
                known = {one[label] for one in series if label in one}
                if label not in _ADDED and not known:
                    wrong.append(f"{where}: {name} has no label {label}")
                elif sign == "=" and "$" not in value and value not in known:
                    wrong.append(f"{where}: {name} has no {label}={value}, only {sorted(known)}")
        grouped = {label.strip() for by in _GROUPING.findall(expr) for label in by.split(",")}
        wrong += [f"{where}: nothing here has the label {label}" for label in grouped - labels]
    assert not wrong, "\n".join(wrong)


def test_every_metric_is_on_the_dashboard(live: Exposed) -> None:
    shown = {name for _, expr in queries() for name, _ in _SELECTOR.findall(expr)}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in live}
    missing = {
        family
        for family in families
        if family.startswith("outrider_")
        and not any(name.startswith(family) for name in shown)
        and f"{family}_total" not in families
    }
    assert not missing


def test_the_dashboard_is_one_that_grafana_10_loads() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD  # or importing it would overwrite another
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [p["title"] for p in DASHBOARD["panels"] if p["type"] == "row"]
    for topic in ("Speculation", "Batching", "Cache", "Latency", "Errors", "Clients"):
        assert any(title.startswith(topic) for title in titles)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]


def test_each_alert_says_what_to_do() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert len(rule["annotations"]["description"]) > 40, rule["alert"]


def test_the_client_serves_what_it_counts() -> None:
    with serving_metrics("127.0.0.1:0") as metrics:
        metrics.observe(run()[3])
    counted = exposed(generate_latest(metrics.registry).decode())
    assert counted["outrider_edge_rounds_total"] == [{"arm": "speculative"}]
    for address in ("nowhere", "127.0.0.1:70000"):
        with pytest.raises(ConfigError, match=rf"edge\.metrics_listen = '{address}': write it as"):
            serving_metrics(address).__enter__()
