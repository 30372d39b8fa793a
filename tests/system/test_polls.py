"""R1: a worker that cannot poll the request queue does not look ready."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from pathlib import Path

from celery_sqs.scaler.listener import Listener
from celery_sqs.scaler.workers import Workers
from celery_sqs.transport.polls import FAILING_S, Polls
from faceapp import broker
from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from tests.faults.proxy import Answer, Exchange, FaultProxy, refused
from tests.support import echo as echo_app
from tests.support.services import celery_worker, environ, wait_until

HOST = "app-tier-instance-7"


def no_request(exchange: Exchange) -> Answer:
    """Polls of the request queue are refused; others pass."""
    if b"-req-queue" in exchange.body:
        return refused(exchange, 403, "AccessDenied", "No.")
    return exchange.forward()


def test_a_worker_is_heard_once_its_polls_are_answered(aws: str, tmp_path: Path) -> None:
    """R1: the scaler takes who is heard for ready, and waited for ever for a worker whose polls all failed."""
    base = Settings(prefix=f"p{uuid.uuid4().hex[:8]}", queue_wait_s=2)
    settings = Settings(prefix=echo_app.prefix(base), queue_wait_s=2)
    deployment.apply(settings)
    log, workers = tmp_path / "log", Workers(service_s=1)
    listener = Listener(broker.create_app(settings), workers)
    listener.start()
    try:
        wait_until(lambda: workers.path_alive, what="events")
        with FaultProxy(aws) as proxy:
            env = environ(proxy.url, base)
            with ExitStack() as stack:
                refusing = stack.enter_context(ExitStack())
                hits = refusing.enter_context(proxy.fault(no_request, service="sqs", operations=("ReceiveMessage",)))
                stack.enter_context(celery_worker("tests.support.echo", log, env, "-c", "1", "-n", f"celery@{HOST}"))
                wait_until(lambda: "a poll of a work queue failed" in log.read_text(), what="a refused poll")
                before = hits["ReceiveMessage"]
                wait_until(lambda: hits["ReceiveMessage"] > before + 4, what="more polls")
                assert workers.heard_s(HOST) is None
                refusing.close()
                wait_until(lambda: workers.online_heard(HOST), what="the worker's coming up")
                assert "polls of the work queues are answered" in log.read_text()
    finally:
        listener.stop()


def test_polls_that_fail_for_a_minute_are_said_and_hold_back_what_the_worker_says() -> None:
    """R1: a worker that stops being able to poll says so."""
    now_s = [0.0]
    polls, heard, working = Polls(clock=lambda: now_s[-1]), [], []
    polls.when_working = lambda: heard.append(now_s[-1])
    for at_s, answered in (
        (0.0, True),
        (0.0, True),
        (0.0, False),
        (FAILING_S - 1, False),
        (FAILING_S, False),
        (FAILING_S, True),
    ):
        now_s.append(at_s)
        polls.note(answered=answered)
        working.append(polls.working)
    assert working == [True, True, True, True, False, True]
    assert heard == [0.0, FAILING_S]


def test_a_poll_that_succeeds_begins_the_minute_anew() -> None:
    now_s = 0.0
    polls = Polls(clock=lambda: now_s)
    for _ in range(5):
        polls.failed("once")
        polls.note(answered=True)
        now_s += FAILING_S
    assert polls.working
