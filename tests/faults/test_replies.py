"""Replies that come late, twice, in pieces, or that nobody sent in earnest."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from typing import Any

import urllib3

from tests.faults.conftest import Record, Running
from tests.faults.outage import account
from tests.faults.proxy import Answer, Exchange, FaultProxy
from tests.faults.system import System, books, burst
from tests.support.services import wait_until

MOST_BYTES = 262_144
"""Of a message in SQS."""


def answers(system: System) -> Counter[str]:
    """What the web tier made of the messages in its response queue, by its own metrics."""
    text = urllib3.request("GET", f"{system.url}/metrics").data.decode()
    found = re.findall(r'^faceapp_web_answers_total\{outcome="(\w+)"\} (\S+)$', text, re.M)
    return Counter({outcome: round(float(count)) for outcome, count in found})


def logged(system: System) -> str:
    assert system.web
    return system.web.log.read_text()


def test_replies_that_come_late(run: Running, record: Record) -> None:
    """Whoever asked has been told that it takes too long, and where the answer will be."""
    with run(workers=0, web_wait_s=2.0) as system:
        sent = burst(system, 30, kinds=("classic", "wait"))
        for each in sent.join():
            assert each.status == (504 if each.kind == "classic" else 202)
            if each.kind == "classic":
                assert json.loads(each.body)["id"] == each.request_id
        system.start_worker()
        found = books(system, sent)
        assert found.done == found.accepted == 30
        for each in sent.replies:
            told = each.request_id if each.kind == "classic" else each.item["id"]
            assert system.result(told)["answer"] == each.photo.expected
        # A reader that expects nothing reads nothing: one more photo makes it read.
        books(system, burst(system, 1))
        wait_until(lambda: answers(system)["late"] > 0, what="the late replies")
        record("replies after the client's wait", "504 with an id, and the result under it", found)


def test_replies_that_come_twice(run: Running, record: Record, aws: str) -> None:
    def doubled(exchange: Exchange) -> Answer:
        if "-resp-queue" in str(json.loads(exchange.body)["QueueUrl"]):
            exchange.forward()
        return exchange.forward()

    with (
        FaultProxy(aws) as proxy,
        run(endpoint=proxy.url) as system,
        proxy.fault(doubled, service="sqs", operations=("SendMessage",)),
    ):
        sent = burst(system, 40, kinds=("classic", "wait"))
        found, refused = account(system, sent)
        assert not refused
        counts = answers(system)
        assert counts["delivered"] == found.done == 40
        assert counts["late"] > 0
        record("every reply sent twice", f"{counts['late']} dropped", found)


def forged(ids: list[str]) -> list[str]:
    """Replies to photos that are waited for, and to others, none of which a worker of ours would send."""

    def reply(result: Any, task_id: str, status: str = "SUCCESS") -> str:
        return json.dumps({"task_id": task_id, "status": status, "result": result})

    done = {"id": uuid.uuid4().hex, "status": "done", "version": 1, "answer": "nobody"}
    shapes = [
        {"version": 2, "id": "x"},
        {**done, "faces": "many"},
        {**done, "timings": {"queued_s": "soon"}},
        done,  # another photo's
        ["done"],
        "done",
        17,
    ]
    return [
        "no JSON",
        "[]",
        "{}",
        "null",
        '{"task_id": 17, "status": {}}',
        "[" * 10_000,
        "x" * MOST_BYTES,
        reply(done, uuid.uuid4().hex),
        *(reply(shape, task_id) for shape, task_id in zip(shapes, ids, strict=False)),
        reply(None, ids[-1], "NONSENSE"),
        reply({"exc_type": 3}, ids[-2], "FAILURE"),
    ]


def test_replies_that_make_no_sense(run: Running, record: Record) -> None:
    with run(workers=0) as system:
        sent = burst(system, 40, kinds=("classic", "wait"))
        wait_until(lambda: system.messages() == 40, timeout_s=240, what="all photos in the queue")
        queue = system.sqs.get_queue_url(QueueName=system.settings.response_queue)["QueueUrl"]
        bodies = forged(system.keys(system.settings.in_bucket))
        for body in bodies:
            system.sqs.send_message(QueueUrl=queue, MessageBody=body)
        wait_until(lambda: answers(system).total() >= len(bodies), timeout_s=240, what="all of them read")
        system.start_worker()
        found, refused = account(system, sent)
        assert not refused
        assert "Traceback" not in logged(system)
        assert " 500 " not in logged(system)
        counts = answers(system)
        assert counts["corrupt"] > 0
        assert counts["late"] > 0
        record("replies that are none, or another photo's", f"{len(bodies)} forged, none believed", found)
