"""The dashboard and the alerts: they ask for nothing that a running web tier, scaler and Flower do not tell."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import uuid
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import flower.events
import prometheus_client
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from celery_sqs.scaler.status import Status
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.http.metrics import ANSWER_BUCKETS_S
from faceapp.scaler import options
from faceapp.stack import data_tier as deployment
from tests.integration.test_scaler import IMAGE, get, process, status_of
from tests.integration.test_web_metrics import ask
from tests.support.aws import plain_client
from tests.support.programs import needs
from tests.support.services import REPOSITORY, free_port, wait_until
from tests.support.web import File, form, plain, web_server

DEPLOY = REPOSITORY / "deploy"
RULES_FILE = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "faceapp.json").read_text())
SCRAPES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {
    **{f"panel {panel['title']}, {each['refId']}": each["expr"] for panel in PANELS for each in panel["targets"]},
    **{rule.get("alert", rule.get("record")): rule["expr"] for rule in RULES},
}
NAME = re.compile(r"\b(?:faceapp|flower)[_:][a-zA-Z0-9_:]+")
SELECTOR = re.compile(r"\b((?:faceapp|flower)[_:][a-zA-Z0-9_:]+|up)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
OF_PROMETHEUS = {"up"}

Told = dict[str, list[dict[str, str]]]
"""The labels of every sample, by its name."""


def told(text: str) -> Told:
    found: Told = {}
    for family in text_string_to_metric_families(text):
        # A family without a sample is told of, too.
        found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.fixture(scope="module")
def settings(aws_endpoint: str, system: Settings) -> Settings:
    found = Settings(
        prefix=f"t{uuid.uuid4().hex[:12]}", worker_image=IMAGE, worker_type="t3.micro", scaler_max_instances=2
    )
    deployment.apply(found, client=plain_client("cloudformation", aws_endpoint))
    return found


@pytest.fixture(scope="module")
def metrics(aws_endpoint: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What a web tier and a scaler tell after a photo that waits, and what Flower would."""
    folder, port = tmp_path_factory.mktemp("observed"), free_port()
    with (
        web_server(aws_endpoint, settings, folder / "web", FACEAPP_WEB_WAIT_S="0.1", FACEAPP_WEB_WAITING="1") as (
            url,
            _,
        ),
        process(aws_endpoint, settings, folder / "scaler", FACEAPP_SCALER_PORT=str(port)),
    ):
        # With no worker that is a 504, the message waits, and the scaler starts an instance for it.
        assert ask(url, "POST", "/", form({"inputFile": File(plain())}))[0] == 504
        assert ask(url, "POST", "/", b"")[0] == 400
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            connection.sendall(head + b"Content-Length: 1\r\n\r\n")
            wait_until(lambda: "faceapp_web_admitted_requests 1.0" in ask(url)[1], what="the only place taken")
            assert ask(url, "POST", "/", form({"inputFile": File(plain())}))[0] == 503
        sqs = plain_client("sqs", aws_endpoint)
        dead = sqs.get_queue_url(QueueName=settings.dead_letter_queue)["QueueUrl"]
        sqs.send_message(QueueUrl=dead, MessageBody="given up")
        wait_until(lambda: status_of(port).get("wanted") == 1, what="a decision")
        web, scaler = ask(url)[1], get(port, "/metrics").decode()
    assert 'faceapp_scaler_dead_letters{state="visible"} 1.0' in scaler
    assert 'faceapp_scaler_decisions_total{kind="acted"}' in scaler
    assert "faceapp_scaler_budget_instance_seconds 0.0" in scaler
    flower.events.get_prometheus_metrics()
    found = {
        name: labels
        for name, labels in told(prometheus_client.generate_latest().decode()).items()
        if name.startswith("flower_")
    }
    # A counter's family is told of without its ending as long as nothing was counted.
    found["flower_events_total"] = [{"worker": "w", "type": "task-succeeded", "task": "t"}]
    assert "flower_events" in found
    # Errors have no sample until there is one.
    status = Status(options(settings), aws_of(settings))
    status.error("run_instances", "capacity")
    errors = {"faceapp_scaler_errors_total": told(status.metrics().decode())["faceapp_scaler_errors_total"]}
    return {**found, **told(web), **told(scaler), **errors}


@pytest.mark.parametrize("where", QUERIES)
def test_a_query_asks_for_what_there_is(metrics: Told, where: str) -> None:
    query = QUERIES[where]
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    names = set(NAME.findall(re.sub(r'"[^"]*"', '""', query)))
    assert names or "up{" in query, "a query of nothing of ours"
    assert names <= metrics.keys() | recorded
    for name, matchers in SELECTOR.findall(query):
        for label, operator, text in MATCHER.findall(matchers):
            if name in OF_PROMETHEUS:
                assert text in {job["job_name"] for job in SCRAPES["scrape_configs"]}
                continue
            values = {labels[label] for labels in metrics[name] if label in labels}
            assert values, f"{name} has no label {label}"
            if operator == "=":
                assert text in values
            elif operator == "=~":
                for alternative in text.split("|"):
                    fits = any(re.fullmatch(alternative, value) for value in values)
                    assert fits or alternative == "api.*" or name.startswith("flower_"), f"{alternative!r}: {values}"
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        known = {label for name in names & metrics.keys() for sample in metrics[name] for label in sample}
        assert {label.strip() for label in labels.split(",")} <= known


def test_everything_that_is_told_is_told_well(metrics: Told) -> None:
    ours = {name for name in metrics if name.startswith("faceapp_")}
    assert len(ours) > 30
    assert all(re.fullmatch(r"faceapp_(web|scaler)_[a-z0-9_]+", name) for name in ours)
    # The scaler's health, and whatever was added for the alerts, is on the dashboard or in a rule.
    asked = set(NAME.findall(" ".join(QUERIES.values())))
    unasked = {
        name
        for name in ours
        if not name.endswith(("_created", "_build_info", "_bucket", "_sum", "_count", "slo_seconds"))
        and not any(each.startswith(name) for each in asked)
    }
    assert not unasked


def test_the_objectives_bound_is_one_of_the_histograms() -> None:
    bounds = {float(bound) for query in QUERIES.values() for bound in re.findall(r'le="([^"]+)"', query)}
    assert bounds == {Settings().scaler_slo_s}
    assert bounds <= {float(each) for each in ANSWER_BUCKETS_S}


@pytest.mark.parametrize("alert", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_says_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Faceapp[A-Z][A-Za-z]+", alert["alert"])
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description", "action"}
    for text in alert["annotations"].values():
        assert len(text.split()) >= 3
    known = {f"FACEAPP_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert set(re.findall(r"FACEAPP_[A-Z_]+", json.dumps(alert["annotations"]))) <= known
    mentioned = set(re.findall(r"\bFaceapp[A-Z]\w+", json.dumps(alert["annotations"])))
    assert mentioned <= {rule["alert"] for rule in ALERTS}


def test_alerts_have_different_names() -> None:
    assert max(Counter(rule["alert"] for rule in ALERTS).values()) == 1


def test_the_dashboard_has_what_grafana_needs() -> None:
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert DASHBOARD["uid"] == "faceapp"
    assert "id" not in DASHBOARD, "an id is one Grafana's own"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_is_whole(panel: dict[str, Any]) -> None:
    source = {"type": "prometheus", "uid": f"${{{DASHBOARD['templating']['list'][0]['name']}}}"}
    assert panel["datasource"] == source
    assert panel["title"].strip()
    assert panel["description"].strip()
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert target["legendFormat"] or panel["type"] == "stat"
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]):
            assert re.search(rf"\bby \([^)]*\b{label}\b", target["expr"]), f"{label} is summed away"


def test_panels_do_not_lie_on_one_another() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken.update((place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"]))
    assert max(taken.values()) == 1


def test_the_scrapes_are_of_the_default_ports() -> None:
    defaults = Settings()
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in SCRAPES["scrape_configs"]}
    assert targets == {
        "faceapp-web": [f"127.0.0.1:{defaults.web_port}"],
        "faceapp-scaler": [f"127.0.0.1:{defaults.scaler_port}"],
        "faceapp-flower": [f"127.0.0.1:{defaults.flower_port}"],
    }
    assert SCRAPES["rule_files"] == [RULES_FILE.name]


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus's own checker; it comes with Prometheus (Debian: apt install prometheus)."""
    return needs("promtool")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_files(promtool: str) -> None:
    run(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_promtool_sees_the_alerts_fire(promtool: str) -> None:
    run(promtool, "test", "rules", REPOSITORY / "tests" / "support" / "alerts.yml")


def test_promtool_takes_the_dashboards_queries(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": query.replace("$__rate_interval", "1m")}
        for n, query in enumerate(QUERIES.values())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run(promtool, "check", "rules", file)
