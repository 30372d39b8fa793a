"""Processes that die, hang, or are told to leave, while photos are on their way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from faceapp.operations.dead_letters import DeadLetters
from tests.faults.conftest import Record, Running
from tests.faults.faulty import HANGS, HOLDS, KILLS
from tests.faults.system import Reply, System, books, burst, photo
from tests.support.services import wait_until

LIMIT_S = 8
VISIBILITY_S = 15
"""A message comes back so long after it was handed to a worker that says nothing more: well after the time limit."""


def failure_code(reply: Reply, system: System) -> str:
    """Why a photo failed, as its client was told, or is when it asks."""
    if reply.kind == "classic":
        document = json.loads(reply.body)
        return str(document["code"])
    item = reply.item if reply.kind == "wait" else system.result(str(reply.id))
    assert item["status"] == "failed", item
    return str(item["failure"]["code"])


def test_a_worker_killed_in_the_middle_of_a_photo(run: Running, record: Record) -> None:
    with run(task_time_limit_s=LIMIT_S, visibility_s=VISIBILITY_S) as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        system.wait_for_held()
        system.kill(system.workers[0])
        system.let_go()
        system.start_worker()
        found = books(system, sent)
        record(
            "worker: main process killed (-9) in the middle of a photo",
            f"its messages came back, another worker did them; {found.again} done twice",
            found,
        )
        assert (found.done, found.unanswered) == (31, 0)


def test_a_pool_process_killed_in_the_middle_of_a_photo(run: Running, record: Record) -> None:
    with run() as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        os.kill(system.wait_for_held(), signal.SIGKILL)
        system.let_go()
        found = books(system, sent)
        record("worker: pool process killed (-9) in the middle of a photo", "the photo was tried again at once", found)
        assert (found.done, found.unanswered, found.again) == (31, 0, 0)


@pytest.mark.slow_fault
def test_a_photo_that_kills_each_process_that_looks_at_it(run: Running, record: Record) -> None:
    with run() as system:
        # One a kind of request.
        sent = burst(system, 30, more=[photo(does=KILLS) for _ in range(3)])
        found = books(system, sent)
        record(
            "a photo that kills the process, every time",
            f"{found.dead} of them dead letters after three tries, failed results; the clients were told",
            found,
        )
        assert (found.done, found.failed, found.dead, found.unanswered) == (30, 3, 3, 0)
        told = [failure_code(each, system) for each in sent.replies if each.photo.expected is None]
        assert told == ["recognition_failed"] * 3
        assert all(each.reason for each in DeadLetters(system.settings).listing().letters)


@pytest.mark.slow_fault
def test_a_photo_that_hangs_each_process_that_looks_at_it(run: Running, record: Record) -> None:
    with run(task_time_limit_s=LIMIT_S, visibility_s=VISIBILITY_S) as system:
        sent = burst(system, 30, more=[photo(does=HANGS)])
        found = books(system, sent)
        record(
            "a photo that hangs the process, every time",
            "the time limit killed it, three times; a dead letter, a failed result, and the client was told",
            found,
        )
        assert (found.done, found.failed, found.dead, found.unanswered) == (30, 1, 1, 0)
        assert [failure_code(each, system) for each in sent.replies if not each.photo.expected] == [
            "recognition_failed"
        ]


@pytest.mark.slow_fault
def test_a_pool_process_that_stands_still(run: Running, record: Record) -> None:
    with run(task_time_limit_s=LIMIT_S, visibility_s=VISIBILITY_S) as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        os.kill(system.wait_for_held(), signal.SIGSTOP)
        system.let_go()
        found = books(system, sent)
        record("worker: pool process stopped (SIGSTOP)", "the time limit killed it, the photo was tried again", found)
        assert (found.done, found.unanswered) == (31, 0)


@pytest.mark.slow_fault
def test_a_worker_that_stands_still_and_comes_to(run: Running, record: Record) -> None:
    with run(task_time_limit_s=LIMIT_S, visibility_s=VISIBILITY_S) as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        system.wait_for_held()
        first = psutil.Process(system.workers[0].process.pid)
        everything = [first, *first.children(recursive=True)]
        for each in everything:
            each.suspend()
        system.let_go()
        system.start_worker()
        sent.join()
        # It finds the messages in its hands that another has done meanwhile, and a photo half done.
        for each in everything:
            each.resume()
        found = books(system, sent)
        record(
            "worker stopped (SIGSTOP), and going on when another had done its photos",
            f"its messages came back; {found.again} done twice, with one answer each",
            found,
        )
        assert (found.done, found.unanswered) == (31, 0)
        assert system.end(system.workers[0]) == 0


@pytest.mark.slow_fault
def test_a_worker_told_to_leave_in_a_burst(run: Running, record: Record) -> None:
    with run() as system:
        sent = burst(system, 25)
        wait_until(lambda: len(system.results()) >= 5, timeout_s=240, what="five results")
        more = burst(system, 25, more=[photo(does=HOLDS)])
        system.wait_for_held()
        first = system.workers[0]
        first.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in first.log.read_text(), what="the worker's farewell")
        system.let_go()
        assert system.end(first) == 0
        finished = system.executions()
        system.start_worker()
        found = books(system, sent, more)
        record(
            "worker told to leave (SIGTERM) in a burst",
            f"it ended what it had begun and left with status 0; {found.again} done twice",
            found,
        )
        assert (found.done, found.unanswered, found.again) == (51, 0, 0)
        assert 5 < len(finished) < 51


@pytest.mark.slow_fault
def test_a_killed_web_tier_comes_back_to_its_photos(run: Running, record: Record) -> None:
    with run(workers=0) as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        # Each is accepted, and most of their clients wait.
        wait_until(lambda: system.messages() == 31, timeout_s=240, what="a burst in the queue")
        system.start_worker()
        system.wait_for_held()
        assert system.web
        system.kill(system.web, group=True)
        system.let_go()
        system.start_web()
        found = books(system, sent)
        record(
            "web tier killed (-9) with requests waiting, and restarted",
            f"{found.unanswered} connections ended; all results fetched by their ids",
            found,
        )
        assert (found.accepted, found.done, found.again) == (31, 31, 0)
        assert 0 < found.unanswered < 31
        expected = {each.name: each.expected for each in sent.photos}
        for name, [id] in system.photos().items():
            assert system.result(id)["answer"] == expected[name]
        # Answers to the dead process's photos are none to the new one's.
        after = books(system, burst(system, 6))
        assert (after.done, after.unanswered, after.balanced) == (6, 0, True)


@pytest.mark.slow_fault
def test_a_web_tier_told_to_leave_answers_those_who_wait(run: Running, record: Record) -> None:
    with run() as system:
        first = burst(system, 0, more=[photo(does=HOLDS)])
        system.wait_for_held()
        sent = burst(system, 30, kinds=("classic", "wait"))
        wait_until(lambda: system.messages() == 31, timeout_s=240, what="a burst in the queue")
        assert system.web
        system.web.process.send_signal(signal.SIGTERM)
        wait_until(lambda: system.get("/healthz") == 0, what="a web tier that takes no more requests")
        system.let_go()
        assert system.end(system.web) == 0
        found = books(system, first, sent)
        record("web tier told to leave (SIGTERM) in a burst", "it answered all who waited, status 0", found)
        assert (found.done, found.unanswered, found.refused) == (31, 0, 0)
        assert {each.status for each in sent.replies} == {200}


@pytest.mark.slow_fault
def test_a_lost_instance_is_replaced(run: Running, record: Record) -> None:
    settings = {"scaler_policy": "depth", "scaler_max_instances": 2, "local_stop_grace_s": 0.0}
    with run(workers=0, scaler=True, visibility_s=VISIBILITY_S, task_time_limit_s=LIMIT_S, **settings) as system:
        sent = burst(system, 40, more=[photo(does=HOLDS)])
        process = psutil.Process(system.wait_for_held())
        name = Path(os.readlink(f"/proc/{process.pid}/fd/1")).stem
        id = system.instances()[name]
        system.ec2.terminate_instances(InstanceIds=[id])
        gone, alive = psutil.wait_procs([process], timeout=240)
        assert (gone, alive) == ([process], [])
        wait_until(lambda: set(system.instances().values()) - {id}, timeout_s=240, what="another instance")
        system.let_go()
        found = books(system, sent)
        record(
            "app-tier instance terminated in the middle of a photo",
            f"the scaler started another; {found.again} done twice",
            found,
        )
        assert (found.done, found.unanswered) == (41, 0)


@pytest.mark.slow_fault
def test_a_scaler_killed_in_a_burst_and_restarted(run: Running, record: Record) -> None:
    settings = {"scaler_policy": "depth", "scaler_max_instances": 2}
    with run(workers=0, scaler=True, visibility_s=VISIBILITY_S, task_time_limit_s=LIMIT_S, **settings) as system:
        sent = burst(system, 40, more=[photo(does=HOLDS)])
        wait_until(system.instances, timeout_s=240, what="an instance")
        system.kill(next(each for each in system.services.running if each.name == "scaler 1"))
        system.wait_for_held()
        more = burst(system, 20)
        started = system.instances()
        # Nobody is there to notice: what runs is lost, and nothing new is started.
        system.ec2.terminate_instances(InstanceIds=list(started.values()))
        wait_until(lambda: not system.instances(), what="no instance")
        system.let_go()
        system.start_scaler()
        found = books(system, sent, more)
        record(
            "scaler killed (-9) in a burst, the instances lost meanwhile, and restarted",
            f"the new one started others, and stopped them after the last photo; {found.again} done twice",
            found,
        )
        assert (found.done, found.unanswered) == (61, 0)
        wait_until(lambda: not system.instances(), timeout_s=240, what="a scaler that stops what is not needed")


@pytest.mark.slow_fault
def test_messages_delivered_twice(run: Running, record: Record) -> None:
    with run(workers=0) as system:
        sent = burst(system, 30)
        wait_until(lambda: system.messages() == 30, timeout_s=240, what="a burst in the queue")
        send_again(system, 30)
        assert system.messages() == 60
        system.start_worker("--concurrency", "2")
        found = books(system, sent)
        record("each message delivered twice", f"{found.again} photos done twice, each answered once", found)
        assert (found.done, found.dead, found.again) == (30, 0, 30)


def send_again(system: System, count: int) -> None:
    """Send the queue's messages once more, as they are."""
    held: dict[str, dict[str, object]] = {}
    while len(held) < count:
        answer = system.sqs.receive_message(
            QueueUrl=system.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageAttributeNames=["All"]
        )
        held.update({each["MessageId"]: each for each in answer["Messages"]})
    for each in held.values():
        system.sqs.send_message(
            QueueUrl=system.queue_url, MessageBody=each["Body"], MessageAttributes=each.get("MessageAttributes", {})
        )
        system.sqs.change_message_visibility(
            QueueUrl=system.queue_url, ReceiptHandle=each["ReceiptHandle"], VisibilityTimeout=0
        )
