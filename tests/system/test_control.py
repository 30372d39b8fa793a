"""Events and remote control over SNS and SQS: whose queues they use, and what becomes of those."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from celery_sqs import events
from celery_sqs.aws import Aws
from celery_sqs.queues import reader, temporary
from celery_sqs.queues.janitor import LOOKS_APART_S, Janitor, Suspects, sweep
from celery_sqs.queues.reader import KEEP_EVERY_S
from celery_sqs.queues.temporary import ABANDONED_S, NOTE_EVERY_S, SECOND, TemporaryQueues, temporary_queues
from celery_sqs.results import Collector
from celery_sqs.transport.fanout import FANOUT_EXCHANGES, arn, topic_name
from faceapp import broker
from faceapp.broker.clients import sqs_client
from faceapp.config import Settings
from faceapp.config.aws import USED_TAG
from faceapp.config.aws import client as aws_client
from faceapp.stack import data_tier as deployment
from tests.support import echo as echo_app
from tests.support.services import PATIENCE_S, celery_worker, environ, wait_until

HOST = "app-tier-instance-7"
NODE = f"celery@{HOST}"


@pytest.fixture
def base(aws: str) -> Settings:
    """Settings whose echo app has queues and topics that no other test uses."""
    settings = Settings(prefix=f"c{uuid.uuid4().hex[:8]}", queue_wait_s=2)
    deployment.apply(echo_settings(settings))
    return settings


def echo_settings(base: Settings) -> Settings:
    return dataclasses.replace(base, prefix=echo_app.prefix(base))


@pytest.fixture
def app(base: Settings) -> Iterator[Any]:
    app = broker.create_app(echo_settings(base))
    yield app
    give_up(echo_settings(base))


def give_up(settings: Settings) -> None:
    """Delete what this process has of the stack's temporary queues, as its exit would; other tests keep theirs."""
    for url in [each for each in temporary_queues._queues if f"/{settings.prefix}-" in each]:
        temporary_queues.delete(url)


def queues(settings: Settings) -> set[str]:
    """The names of a stack's queues without its prefix, the template's own left out."""
    found = sqs_client().list_queues(QueueNamePrefix=f"{settings.prefix}-").get("QueueUrls", ())
    names = {url.rpartition("/")[2].removeprefix(f"{settings.prefix}-") for url in found}
    return names - {"req-queue", "resp-queue", "dead-letter-queue"}


def subscribed(settings: Settings) -> set[str]:
    """The names of the queues that the stack's topics feed, without the prefix."""
    sns, url = aws_client("sns"), sqs_client().get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
    topics = [arn(sns, "sns", url, topic_name(settings.prefix, exchange)) for exchange in FANOUT_EXCHANGES]
    answers = [sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"] for topic in topics]
    endpoints = [each["Endpoint"].rpartition(":")[2] for answer in answers for each in answer]
    return {each.removeprefix(f"{settings.prefix}-") for each in endpoints}


def url_of(settings: Settings, name: str) -> str:
    return str(sqs_client().get_queue_url(QueueName=f"{settings.prefix}-{name}")["QueueUrl"])


def make_old(settings: Settings, name: str) -> None:
    """As if nobody had used the queue for a while."""
    used_s = int(time.time() - ABANDONED_S - 60)
    sqs_client().tag_queue(QueueUrl=url_of(settings, name), Tags={USED_TAG: str(used_s)})


CONTROL = f"celery_{HOST}-celery-pidbox"


def test_a_worker_takes_its_queue_with_it(aws: str, base: Settings, app: Any, tmp_path: Path) -> None:
    settings = echo_settings(base)
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, base), "-c", "1", "-n", NODE) as worker:
        wait_until(lambda: app.control.inspect([NODE], timeout=5).ping(), what="an answer")
        assert CONTROL in queues(settings)
        assert CONTROL in subscribed(settings)
        worker.terminate()
        worker.wait(240)
    give_up(settings)  # the replies to this process

    assert queues(settings) == set()
    assert subscribed(settings) == set()


def test_a_sweep_that_breaks_off_confirms_no_suspect(stack: Settings) -> None:
    """A queue that was in use at the sweep after it stayed a suspect, and went at the next bad look."""
    sqs, now_s, suspects = sqs_client(), [0.0], Suspects(apart_s=LOOKS_APART_S, clock=lambda: now_s[0])
    url = sqs.create_queue(QueueName=f"{stack.prefix}-gone-asleep", tags={USED_TAG: "1"})["QueueUrl"]
    with pytest.raises(ClientError, match="NonExistentQueue"):
        sweep(broker.options(dataclasses.replace(stack, prefix=f"{stack.prefix}-gone")), suspects)
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: str(int(time.time()))})
    assert sweep(broker.options(stack), suspects) == []
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: "1"})
    now_s[0] = LOOKS_APART_S
    assert sweep(broker.options(stack), suspects) == []


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
def test_a_wrong_clock_sweeps_no_queue_in_use(stack: Settings, ahead_s: int) -> None:
    """The owner's clock at first, and then that of the scaler, which sweeps."""
    right, ours = time.time, TemporaryQueues()
    sqs, name = sqs_client(), f"{stack.prefix}-in-use"
    with pytest.MonkeyPatch.context() as wrong:
        wrong.setattr(time, "time", lambda: right() + ahead_s)
        url = ours.make(broker.options(stack).aws, name)
    assert abs(int(sqs.list_queue_tags(QueueUrl=url)["Tags"][USED_TAG]) - right()) < 600
    assert sweep(broker.options(stack), Suspects(apart_s=0)) == []
    with pytest.MonkeyPatch.context() as wrong:
        wrong.setattr(time, "time", lambda: right() + ahead_s)
        assert sweep(broker.options(stack), Suspects(apart_s=0)) == []
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: "1"})
    assert sweep(broker.options(stack), Suspects(apart_s=0)) == [name]


def test_nothing_is_swept_at_first_sight(stack: Settings) -> None:
    """C11: AWS may show a tag as it was a minute ago, and whoever was asleep notes soon that its queue is in use."""
    sqs, now_s, names = sqs_client(), [0.0], [f"{stack.prefix}-{each}" for each in ("dead", "asleep")]
    asleep = [sqs.create_queue(QueueName=name, tags={USED_TAG: "1"})["QueueUrl"] for name in names][1]
    suspects = Suspects(apart_s=LOOKS_APART_S, clock=lambda: now_s[0])
    assert sweep(broker.options(stack), suspects) == []
    now_s[0] = LOOKS_APART_S - 1
    assert sweep(broker.options(stack), suspects) == []
    sqs.tag_queue(QueueUrl=asleep, Tags={USED_TAG: "2"})
    now_s[0] = LOOKS_APART_S
    assert sweep(broker.options(stack), suspects) == [names[0]]
    sqs.tag_queue(QueueUrl=asleep, Tags={USED_TAG: str(int(time.time()))})
    assert sweep(broker.options(stack), suspects) == []
    # Later it looks as it did at first, and is suspected from then on only.
    sqs.tag_queue(QueueUrl=asleep, Tags={USED_TAG: "2"})
    now_s[0] = 3 * LOOKS_APART_S
    assert sweep(broker.options(stack), suspects) == []
    assert len(suspects._seen) == 1
    now_s[0] = 4 * LOOKS_APART_S
    assert sweep(broker.options(stack), suspects) == [names[1]]
    assert sweep(broker.options(stack), suspects) == []
    assert not suspects._seen


def test_owners_note_their_queues_well_before_they_are_swept() -> None:
    """C11: the slowest owner is a reader to whom nothing comes; AWS shows a new tag within a minute."""
    assert min(LOOKS_APART_S, ABANDONED_S) > NOTE_EVERY_S + KEEP_EVERY_S + 60


def test_a_reader_to_whom_nothing_comes_keeps_its_queue(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """C11: a web process without visitors is no dead one."""
    monkeypatch.setattr(temporary, "NOTE_EVERY_S", 0.0)
    monkeypatch.setattr(reader, "KEEP_EVERY_S", 0.1)
    collector = Collector(broker.options(stack).aws, f"{stack.response_queue}-idle-0", wait_s=0, life="place")
    collector.expect("a")
    sqs, url = sqs_client(), collector._queue_url
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"task_id": "a", "status": "SUCCESS"}))
    wait_until(lambda: collector.waiting == 0, what="the answer")
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: "1"})
    wait_until(lambda: sqs.list_queue_tags(QueueUrl=url)["Tags"][USED_TAG] != "1", what="a note")
    collector.close(delete_queue=True)


def test_the_janitor_goes_on_whatever_fails(stack: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """C11: its thread does not end unseen, and one chore keeps no other from being done."""
    errors, done = Counter[tuple[str, str]](), Counter[str]()

    def chore() -> None:
        done["chore"] += 1
        if done["chore"] > 1:
            raise KeyError("a mistake of ours")

    def other() -> None:
        done["other"] += 1

    janitor = Janitor(
        broker.options(dataclasses.replace(stack, prefix="nobodys")),
        leads=lambda: True,
        chores={"chore": chore, "other": other},
        on_error=lambda *what: errors.update([what]),
        every_s=0.01,
    )
    with caplog.at_level("WARNING"):
        janitor.start()
        wait_until(lambda: done["other"] >= 3, timeout_s=120, what="three rounds")
        janitor.stop()
    assert errors["chore", "KeyError"] >= 2
    assert len(errors) == 2  # the other is the sweep's, for there is no such stack
    said = [each.getMessage() for each in caplog.records if "the janitor's" in each.getMessage()]
    assert len(said) == 2


def test_what_a_killed_worker_leaves_is_swept_and_what_lives_is_not(
    aws: str, base: Settings, app: Any, tmp_path: Path
) -> None:
    settings = echo_settings(base)
    other = "celery@app-tier-instance-8"
    with (
        celery_worker("tests.support.echo", tmp_path / "a", environ(aws, base), "-c", "1", "-n", NODE) as killed,
        celery_worker("tests.support.echo", tmp_path / "b", environ(aws, base), "-c", "1", "-n", other),
    ):
        wait_until(lambda: len(app.control.ping(timeout=5, limit=2)) == 2, what="both answers")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert CONTROL not in " ".join(sweep(broker.options(settings), Suspects(apart_s=0)))  # it may come back
        make_old(settings, CONTROL)

        deleted = sweep(broker.options(settings), Suspects(apart_s=0))

        assert f"{settings.prefix}-{CONTROL}" in deleted
        assert CONTROL not in queues(settings) | subscribed(settings)
        assert app.control.inspect([other], timeout=240).ping() == {other: {"ok": "pong"}}
        assert sweep(broker.options(settings), Suspects(apart_s=0)) == []


def test_a_successor_takes_the_queue_over_and_obeys_no_old_command(
    aws: str, base: Settings, app: Any, tmp_path: Path
) -> None:
    settings = echo_settings(base)
    with celery_worker("tests.support.echo", tmp_path / "a", environ(aws, base), "-c", "1", "-n", NODE) as first:
        wait_until(lambda: app.control.inspect([NODE], timeout=5).ping(), what="an answer")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    make_old(settings, CONTROL)

    def send() -> bool:
        # The killed worker's last long poll may still be handed one.
        app.control.broadcast("shutdown", destination=[NODE])
        return waiting(settings, CONTROL) > 0

    wait_until(send, what="the command")
    # Only what was sent well before a queue was taken over counts as old: clocks do not agree to the second.
    sent_s = time.monotonic()
    wait_until(lambda: time.monotonic() - sent_s > 3, what="a pause")

    with celery_worker("tests.support.echo", tmp_path / "b", environ(aws, base), "-c", "1", "-n", NODE) as second:
        assert app.control.inspect([NODE], timeout=240).ping() == {NODE: {"ok": "pong"}}
        wait_until(lambda: waiting(settings, CONTROL) == 0, what="the old command's end")
        assert app.control.inspect([NODE], timeout=240).ping() == {NODE: {"ok": "pong"}}
        assert second.poll() is None
        assert sweep(broker.options(settings), Suspects(apart_s=0)) == []  # it is in use again


def waiting(settings: Settings, name: str) -> int:
    attribute = "ApproximateNumberOfMessages"
    answer = sqs_client().get_queue_attributes(QueueUrl=url_of(settings, name), AttributeNames=[attribute])
    return int(answer["Attributes"][attribute])


def test_questions_asked_at_once_get_their_own_answers(aws: str, base: Settings, app: Any, tmp_path: Path) -> None:
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, base), "-c", "1", "-n", NODE):
        wait_until(lambda: app.control.inspect([NODE], timeout=5).ping(), what="an answer")
        methods = ["ping", "stats", "active_queues", "registered", "conf", "active", "reserved", "revoked"]

        def ask(method: str) -> Any:
            return getattr(app.control.inspect([NODE], timeout=240), method)()[NODE]

        with ThreadPoolExecutor(len(methods)) as pool:
            answers = dict(zip(methods, pool.map(ask, methods), strict=True))

        assert answers["ping"] == {"ok": "pong"}
        assert answers["stats"]["pool"]["max-concurrency"] == 1
        assert answers["active_queues"][0]["name"] == "req-queue"
        assert "tests.echo" in answers["registered"]
        assert answers["conf"]["task_acks_late"] is True
        assert answers["active"] == answers["reserved"] == answers["revoked"] == []
        # One queue for all of them.
        assert sum(name.endswith("reply-celery-pidbox") for name in queues(echo_settings(base))) == 1


def test_nobody_answers_within_the_time(app: Any) -> None:
    assert app.control.inspect(timeout=0.2).ping() is None
    assert app.control.ping(timeout=0.2) == []


def test_a_reply_to_somebody_who_has_gone_makes_no_queue(aws: str, base: Settings, app: Any, tmp_path: Path) -> None:
    settings = echo_settings(base)
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, base), "-c", "1", "-n", NODE) as worker:
        wait_until(lambda: app.control.inspect([NODE], timeout=5).ping(), what="an answer")
        with app.connection_for_write() as connection:
            mailbox = app.control.mailbox(connection)
            for gone in ("never-there", app.control._replies().routing_key):
                app.control._replies().close(delete_queue=True)
                with mailbox.producer_or_acquire() as producer:
                    reply_to = {"exchange": "reply.celery.pidbox", "routing_key": gone}
                    question = {"method": "ping", "arguments": {}, "ticket": "t", "reply_to": reply_to}
                    producer.publish(question, exchange="celery.pidbox", declare=[mailbox.exchange])
        app.control._own = None
        assert app.control.inspect([NODE], timeout=240).ping() == {NODE: {"ok": "pong"}}
        assert worker.poll() is None
        replies = [name for name in queues(settings) if name.endswith("reply-celery-pidbox")]
        assert replies == [f"{app.control._replies().routing_key}-reply-celery-pidbox"]


def test_a_reply_that_is_none_is_dropped(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    replies = app.control._replies()
    good = {"headers": {"ticket": "mine"}, "body": json.dumps({"celery@a": {"ok": "pong"}})}
    with replies.question("mine", expected=1) as question:
        other = json.dumps({**good, "headers": {"ticket": "another"}})
        for body in ("no json", "[]", "{}", '{"headers": {}, "body": "{}"}', other, json.dumps(good)):
            sqs_client().send_message(QueueUrl=replies._queue_url, MessageBody=body)
        assert list(question.take(20)) == [{"celery@a": {"ok": "pong"}}]
    assert caplog.text.count("not one") == 4


def test_topics_that_no_template_made_are_made(stack: Settings) -> None:
    """Of a stack from before there were topics, and of queues made by hand."""
    app = broker.create_app(stack)
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            with app.events.default_dispatcher() as dispatcher:
                dispatcher.send("worker-heartbeat", freq=60)
            listening.drain_events(timeout=240)
    give_up(stack)
    assert seen == ["worker-heartbeat"]
    assert queues(stack) == set()


def test_a_listener_whose_queue_was_swept_makes_it_anew(
    base: Settings, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(event["type"])}, node_id="sleeper"
        )
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            make_old(echo_settings(base), "celeryev-sleeper")
            assert len(sweep(broker.options(echo_settings(base)), Suspects(apart_s=0))) == 2
            monkeypatch.setattr(temporary, "NOTE_EVERY_S", 0.0)
            with pytest.raises(TimeoutError):
                listening.drain_events(timeout=0.1)
            with app.events.default_dispatcher() as dispatcher:
                dispatcher.send("worker-online")
            wait_until(lambda: drained(listening) and seen, what="the event")
    assert seen == ["worker-online"]


def drained(connection: Any) -> bool:
    try:
        connection.drain_events(timeout=1)
    except TimeoutError:
        return False
    return True


def test_a_worker_that_stops_tells_of_the_tasks_that_it_still_finishes(
    aws: str, base: Settings, app: Any, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    held = tmp_path / "held"
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append}, node_id="watcher")
        with (
            receiver.consumer_context(wakeup=False) as (listening, _, _),
            celery_worker("tests.support.echo", tmp_path / "log", environ(aws, base), "-c", "1", "-n", NODE) as worker,
        ):
            answer = app.send_task("tests.hold", args=[str(held)])
            wait_until(held.exists, what="the task's start")
            worker.terminate()
            wait_until(lambda: drained(listening) and kinds(seen)[-1] == "worker-offline", what="the goodbye")
            held.unlink()
            assert answer.get(timeout=240) == "let go"
            wait_until(lambda: drained(listening) and kinds(seen)[-1] == "task-succeeded", what="the task's end")
            worker.wait(240)
    app.backend.collector.close(delete_queue=True)
    assert kinds(seen) == ["worker-online", "task-received", "task-started", "worker-offline", "task-succeeded"]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events if event["type"] != "worker-heartbeat"] or [""]


class Busy:
    """An AWS with an SQS client whose queue's name was given up just now."""

    used_tag = "used"

    def __init__(self, code: str) -> None:
        self.code = code
        self.made: list[str] = []

    def shared(self, service: str) -> Busy:
        return self

    def quick(self, service: str) -> Busy:
        return self

    def delete_queue(self, *, QueueUrl: str) -> None:
        """At the process's end."""

    def create_queue(self, *, QueueName: str, **_: Any) -> dict[str, str]:
        self.made.append(QueueName)
        if len(self.made) == 1:
            raise ClientError({"Error": {"Code": self.code, "Message": "wait 60 seconds"}}, "CreateQueue")
        return {"QueueUrl": f"http://nowhere/1/{QueueName}"}


def test_a_name_given_up_just_now_is_not_waited_for() -> None:
    busy: Any = Busy("AWS.SimpleQueueService.QueueDeletedRecently")
    assert TemporaryQueues().make(busy, "name") == f"http://nowhere/1/name{SECOND}"
    assert busy.made == ["name", f"name{SECOND}"]
    busy = Busy("AccessDenied")
    with pytest.raises(ClientError):
        TemporaryQueues().make(busy, "name")


def test_a_queue_of_the_template_is_used_and_left_alone(base: Settings, app: Any) -> None:
    """A role may be allowed neither to look at tags nor to subscribe: then the stack has done it."""
    settings = echo_settings(base)
    sqs_client().create_queue(QueueName=f"{settings.prefix}-celeryev-given")
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, node_id="given")
        channel = connection.default_channel
        client = channel.fanout.get_client()

        def refuse(**_: Any) -> None:
            raise ClientError({"Error": {"Code": "AuthorizationError", "Message": "not you"}}, "Subscribe")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "subscribe", refuse)
            with receiver.consumer_context(wakeup=False) as (listening, _, _):
                url = url_of(settings, "celeryev-given")
                event = {"body": "{}", "content-type": "application/json", "content-encoding": "utf-8"}
                body = json.dumps({**event, "properties": {"delivery_info": {}, "delivery_tag": "1"}})
                sqs_client().send_message(QueueUrl=url, MessageBody=body)
                with pytest.raises(KeyError, match="type"):  # it was taken in
                    listening.drain_events(timeout=240)
    give_up(settings)
    assert "celeryev-given" in queues(settings)


def test_names_longer_than_sqs_takes_are_cut_and_stay_apart(aws: str) -> None:
    settings = Settings(prefix=f"p{uuid.uuid4().hex[:31]}")
    sqs_client().create_queue(QueueName=settings.request_queue)
    with broker.create_app(settings).connection_for_read() as connection:
        names = {connection.default_channel.canonical_queue_name(f"celeryev.{'h' * 63}-{n}") for n in range(3)}
    assert {len(name) for name in names} == {80 - len(SECOND)}
    assert len(names) == 3


def test_a_forked_child_owns_nothing() -> None:
    queues = TemporaryQueues()
    queues._add("http://nowhere/1/mine", Aws(), time.time())
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(len(queues._queues)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 9) == b"0"
    assert list(queues._queues) == ["http://nowhere/1/mine"]
    queues._queues.clear()
    for each in (reading, writing):
        os.close(each)


def test_the_scaler_listens_at_a_place_of_its_own(base: Settings) -> None:
    from celery_sqs.scaler.listener import Listener
    from celery_sqs.scaler.workers import Workers

    settings = echo_settings(base)
    workers = Workers(service_s=1.0)
    listeners = [Listener(broker.create_app(settings), workers, place=str(port)) for port in (8001, 8002)]
    for each in listeners:
        each.start()
    names = {f"celeryev-scaler-{socket.gethostname().replace('.', '-')}-{port}" for port in (8001, 8002)}
    wait_until(lambda: names <= subscribed(settings), what="two subscriptions")
    for each in listeners:
        each.stop()
    give_up(settings)


def test_events_that_sns_refuses_neither_pile_up_nor_hold_the_worker(
    base: Settings, app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery keeps all of them, and tries all of them again each time: an outage of minutes would be a storm."""
    taken: list[str] = []
    tries = 0

    def publish(**named: Any) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if refuses:
            raise ClientError({"Error": {"Code": "Throttled", "Message": "not now"}}, "Publish")
        taken.append(named["Message"])
        return {"ResponseMetadata": {"HTTPStatusCode": 200}}

    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname=NODE, buffer_group=["task"])
        monkeypatch.setattr(dispatcher.producer.channel.fanout.get_client(), "publish", publish)
        refuses = True
        for n in range(100):
            dispatcher.send("task-started", uuid=str(n))
            dispatcher.flush()
        assert tries == 1
        assert "not now" in caplog.text
        monkeypatch.setattr(dispatcher, "_quiet_until_s", time.monotonic())
        dispatcher.flush()
        assert tries == 2

        refuses = False
        monkeypatch.setattr(dispatcher, "_quiet_until_s", time.monotonic())
        dispatcher.flush()

    told = [event["uuid"] for each in taken for event in json.loads(json.loads(each)["body"])]
    assert told == [str(n) for n in range(100 - events.KEPT, 100)]


def test_the_janitor_passes_over_what_is_not_its_own(base: Settings, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack whose prefix begins with this one's is listed with it, and anybody may listen to the topics."""
    settings = echo_settings(base)
    names = [f"{settings.prefix}-{each}" for each in ("a-test-req-queue", "celeryev-gone")]
    for name in names:
        sqs_client().create_queue(QueueName=name, tags={USED_TAG: "1"})
    sns, url = aws_client("sns"), sqs_client().get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
    topic = arn(sns, "sns", url, topic_name(settings.prefix, "celeryev"))
    sns.create_topic(Name=topic.rpartition(":")[2])
    for endpoint in (
        f"arn:aws:sqs:us-east-1:999999999999:{settings.prefix}-celeryev-theirs",
        arn(sns, "sqs", url, "analytics"),
        arn(sns, "sqs", url, f"{settings.prefix}-a-test-celeryev-x"),
        arn(sns, "sqs", url, f"{settings.prefix}-celeryev-left"),
    ):
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=endpoint)

    client, other = sqs_client(), aws_client("sns")
    monkeypatch.setattr(Aws, "client", lambda aws, service, **_: client if service == "sqs" else other)
    for operation in ("list_queue_tags", "get_queue_url"):
        monkeypatch.setattr(client, operation, refusing(getattr(client, operation), "-a-test-"))

    deleted = sweep(broker.options(settings), Suspects(apart_s=0))

    assert deleted[0] == names[1]
    assert len(deleted) == 2
    assert subscribed(settings) == {"celeryev-theirs", "a-test-celeryev-x", "analytics"}


def refusing(call: Any, part: str) -> Any:
    """`call`, not allowed for queues with `part` in their names."""

    def refuse(**named: Any) -> Any:
        if part in str(named):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, "Call")
        return call(**named)

    return refuse


@pytest.mark.parametrize("ahead_s", [240, -240])
def test_a_listener_whose_clock_is_wrong_misses_nothing(
    base: Settings, app: Any, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Its requests are still taken (AWS allows five minutes), so it must not take the news for old."""
    real_s = time.time
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(event["type"])}, node_id="skewed"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time", lambda: real_s() + ahead_s)
            context = receiver.consumer_context(wakeup=False)
            listening, _, _ = context.__enter__()
        try:
            assert abs(temporary_queues.began_s(url_of(echo_settings(base), "celeryev-skewed")) - real_s()) < 60
            with app.events.default_dispatcher() as dispatcher:
                dispatcher.send("worker-online")
            wait_until(lambda: drained(listening) and seen, what="the event")
        finally:
            context.__exit__(None, None, None)
    assert seen == ["worker-online"]


def just_deleted(client: Any, name: str) -> Any:
    """`client`'s create_queue, for which the queue `name` was deleted less than a minute ago."""
    create = client.create_queue

    def make(*, QueueName: str, **named: Any) -> Any:
        if QueueName == name:
            raise ClientError({"Error": {"Code": "QueueDeletedRecently", "Message": "wait 60 seconds"}}, "CreateQueue")
        return create(QueueName=QueueName, **named)

    return make


def test_the_second_name_is_one_that_the_topics_may_send_to(
    base: Settings, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        name = channel.canonical_queue_name("celeryev.again")
        monkeypatch.setattr(channel.sqs(), "create_queue", just_deleted(channel.sqs(), name))
        channel.queue_declare(queue="celeryev.again", auto_delete=True)
        url, own = channel.queue_of("celeryev.again")
    assert own.endswith(f"{name}{SECOND}")
    policy = sqs_client().get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
    topics_may, nobody_without_tls = json.loads(policy)["Statement"]
    assert topics_may["Resource"] == nobody_without_tls["Resource"] == own
    assert (nobody_without_tls["Effect"], nobody_without_tls["Condition"]) == (
        "Deny",
        {"Bool": {"aws:SecureTransport": "false"}},
    )


def test_answers_come_although_the_queue_for_them_was_swept_just_now(
    aws: str, base: Settings, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with celery_worker("tests.support.echo", tmp_path / "log", environ(aws, base), "-c", "1", "-n", NODE):
        wait_until(lambda: app.control.inspect([NODE], timeout=5).ping(), what="an answer")
        replies = app.control._replies()
        monkeypatch.setattr(replies._sqs, "create_queue", just_deleted(replies._sqs, replies.queue_name))
        sqs_client().delete_queue(QueueUrl=replies._queue_url)
        monkeypatch.setattr(temporary, "NOTE_EVERY_S", 0.0)
        assert app.control.inspect([NODE], timeout=240).ping() == {NODE: {"ok": "pong"}}


def test_a_child_forked_while_a_queue_is_noted_does_not_hang() -> None:
    queues = TemporaryQueues()
    with queues._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(PATIENCE_S))
            queues._add("http://nowhere/1/childs", Aws(), time.time())
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
