"""The events of a real worker, over the real transport."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from celery_sqs.scaler.listener import Listener
from celery_sqs.scaler.workers import Workers
from faceapp import broker
from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from faceapp.work.pace import worked_s
from tests.support import echo
from tests.support.aws import COUNTER
from tests.support.services import celery_worker, environ, wait_until

HOST = "app-tier-instance-1"


@pytest.fixture
def echo_settings(aws: str) -> Settings:
    base = Settings(prefix=f"e{uuid.uuid4().hex[:8]}", queue_wait_s=2)
    settings = dataclasses.replace(base, prefix=echo.prefix(base))
    deployment.apply(settings)
    return base


@pytest.fixture
def listening(echo_settings: Settings) -> Iterator[Workers]:
    settings = dataclasses.replace(echo_settings, prefix=echo.prefix(echo_settings))
    workers = Workers(service_s=9.0, worked_s=worked_s)
    listener = Listener(broker.create_app(settings), workers)
    listener.start()
    wait_until(lambda: workers.path_alive, what="the listener's own event")
    yield workers
    listener.stop()


def sns_publishes(aws: str) -> int:
    request = urllib.request.Request(f"{aws}/faceapp/calls", headers=COUNTER)
    with urllib.request.urlopen(request) as answer:
        return int(json.load(answer)["calls"].get("sns", {}).get("Publish", 0))


def test_a_real_worker_is_seen_busy_idle_and_gone(
    aws: str, echo_settings: Settings, listening: Workers, tmp_path: Path
) -> None:
    settings = dataclasses.replace(echo_settings, prefix=echo.prefix(echo_settings))
    options = ("--concurrency", "1", "--hostname", f"celery@{HOST}")
    log = tmp_path / "log"
    with celery_worker("tests.support.echo", log, environ(aws, echo_settings), *options) as process:
        wait_until(lambda: listening.heard_s(HOST) is not None, what="worker-online")
        assert listening.online_heard(HOST)
        before, began_s = sns_publishes(aws), time.monotonic()
        app = broker.create_app(settings)
        answers = [app.send_task("tests.echo", args=[n]) for n in range(40)]
        assert [answer.get(timeout=240) for answer in answers] == list(range(40))
        wait_until(lambda: listening.done == 40, what="the end of all tasks, as events")
        assert listening.idle_s(HOST) is not None
        assert listening.service_s == 9.0, "an echo is no recognition (C3)"
        # 120 events, once a second; the listener's pings and remote control's broadcasts count as well.
        assert sns_publishes(aws) - before <= 20 + 2 * (time.monotonic() - began_s)
        _stop(process)
        wait_until(lambda: listening.left_s(HOST) is not None, what="worker-offline")
    app.backend.collector.close(delete_queue=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(240)


def test_a_heartbeat_says_how_many_processes_there_are_now(aws: str, echo_settings: Settings, tmp_path: Path) -> None:
    """What Flower's buttons change was never told."""
    settings = dataclasses.replace(echo_settings, prefix=echo.prefix(echo_settings), scaler_port=3)
    told: list[int | None] = []

    class Told(Workers):
        def on_event(self, event: Mapping[str, Any]) -> None:
            if event["type"] == "worker-heartbeat":
                told.append(event.get("processes"))
            super().on_event(event)

    Listener(broker.create_app(settings), Told(service_s=1.0)).start()
    options = ("--concurrency", "1", "--hostname", f"celery@{HOST}", "--heartbeat-interval", "1")
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, echo_settings), *options):
        wait_until(lambda: 1 in told, what="a heartbeat")
        broker.create_app(settings).control.pool_grow(1, destination=[f"celery@{HOST}"])
        wait_until(lambda: 2 in told, what="a heartbeat with the new process")


def test_a_scaler_that_begins_is_told_of_workers_that_are_there(
    aws: str, echo_settings: Settings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(echo_settings, prefix=echo.prefix(echo_settings))
    heard = [Workers(service_s=1.0), Workers(service_s=1.0)]
    first, second = (
        Listener(broker.create_app(settings), workers, place=str(port))
        for port, workers in zip((1, 2), heard, strict=True)
    )
    first.start()
    wait_until(lambda: heard[0].path_alive, what="events")
    # Its next heartbeat comes after the test.
    options = ("--concurrency", "1", "--hostname", f"celery@{HOST}", "--heartbeat-interval", "86400")
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, echo_settings), *options):
        wait_until(lambda: heard[0].online_heard(HOST), what="the worker's coming up")
        second.start()
        wait_until(lambda: heard[1].idle_s(HOST) is not None, what="an answer")
        assert not heard[1].online_heard(HOST)
    for listener in (first, second):
        listener.stop()
