"""celery_sqs in any application: what importing it does, and apps that differ in region and prefix in one process."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

import celery_sqs
from celery_sqs import ConfigurationError, Options
from celery_sqs.aws import Aws
from celery_sqs.results.chords import Chord
from celery_sqs.results.store import Store
from celery_sqs.transport import delay
from celery_sqs.transport.visibility import Keeper
from tests.support.aws import session
from tests.support.services import wait_until

REGIONS = ("us-east-1", "eu-west-1")


def configured(prefix: str, **options: Any) -> Celery:
    app = Celery(prefix, set_as_current=False)
    celery_sqs.configure(app, Options(prefix=prefix, **options))
    return app


def test_importing_it_changes_nothing() -> None:
    """It made every sqs:// of the process its own, celeryev a fanout exchange, and hooked three signals."""
    code = """
from celery import signals
from celery.events.event import event_exchange
from kombu.transport import TRANSPORT_ALIASES
def state():
    receivers = [len(each.receivers) for each in (signals.worker_init, signals.worker_shutdown, signals.setup_logging)]
    return TRANSPORT_ALIASES["sqs"], event_exchange.type, receivers
before = state()
import celery_sqs, celery_sqs.transport, celery_sqs.results, celery_sqs.control, celery_sqs.events
assert state() == before, (before, state())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_apps_in_two_regions_live_in_one_process(aws: str) -> None:
    """Deletes went to the environment's region, so every task of another was done again and again."""
    for region in REGIONS:
        prefix = f"r{uuid.uuid4().hex[:8]}"
        app = configured(prefix, region=region, wait_s=0)
        app.send_task("any", args=[1], ignore_result=True)
        sqs = session().client("sqs", endpoint_url=aws, region_name=region)
        url = sqs.get_queue_url(QueueName=f"{prefix}-celery")["QueueUrl"]
        with app.connection_for_read() as connection:
            [message] = [connection.default_channel.basic_get("celery")]
            message.ack()
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        assert set(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()) == {"0"}
        other = session().client("sqs", endpoint_url=aws, region_name=next(each for each in REGIONS if each != region))
        assert not other.list_queues(QueueNamePrefix=prefix).get("QueueUrls")


def test_a_queue_that_may_not_be_made_is_a_clear_error(aws: str) -> None:
    app = configured(f"n{uuid.uuid4().hex[:8]}", create_queues=False)
    with pytest.raises(celery_sqs.BrokerUnavailable, match="-celery does not exist, and is not to be made here"):
        app.send_task("any", ignore_result=True)


def test_predefined_queues_are_used_as_they_are(aws: str) -> None:
    """They were ignored; with them a role needs no right to list or make queues."""
    name = f"given-{uuid.uuid4().hex[:8]}"
    sqs = session().client("sqs", endpoint_url=aws)
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    options = {"predefined_queues": {"orders": {"url": url}}, "queue_name_prefix": "never-used-"}
    with Connection("sqs://", transport="celery_sqs.transport:Transport", transport_options=options) as connection:
        connection.SimpleQueue("orders").put({"n": 1})
        message = connection.SimpleQueue("orders").get(timeout=60)
        assert message.payload == {"n": 1}
        message.ack()
    assert not sqs.list_queues(QueueNamePrefix="never-used-").get("QueueUrls")


def test_a_queue_that_was_deleted_is_made_again(aws: str) -> None:
    """As Celery's own mailbox does for each question."""
    with configured(f"d{uuid.uuid4().hex[:8]}").connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue="answers", auto_delete=True)
        channel.queue_delete("answers")
        channel.queue_declare(queue="answers", auto_delete=True)
        assert channel._size("answers") == 0


def test_options_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one work queue"):
        Options(prefix="p", queues=())
    with pytest.raises(ConfigurationError, match="SQS takes 0 to 20"):
        Options(prefix="p", wait_s=21)


def test_without_a_bucket_a_chord_says_what_it_needs(aws: str) -> None:
    """It went round for ever: nothing counted its parts."""
    app = configured(f"c{uuid.uuid4().hex[:8]}")
    with pytest.raises(NotImplementedError, match="results_bucket"):
        app.backend.ensure_chords_allowed()


def test_an_eta_waits_in_sqs_up_to_its_longest_delay() -> None:
    now_s = 1_700_000_000.0

    def eta(seconds: float) -> dict[str, str]:
        return {"eta": (datetime.fromtimestamp(now_s, UTC) + timedelta(seconds=seconds)).isoformat()}

    assert [delay.delay_s(delay.left_s(eta(s), now_s)) for s in (-5, 0, 9, 11, 100, 902, 90_000)] == [
        *(0, 0, 0, 9, 98, 900, 900)
    ]
    naive = {"eta": eta(60)["eta"].removesuffix("+00:00")}
    assert delay.left_s(naive, now_s) == 60
    nothing: list[Any] = [None, {}, {"eta": None}, {"eta": "soon"}, []]
    assert [delay.left_s(headers, now_s) for headers in nothing] == [0] * 5


@pytest.fixture
def store(aws: str) -> Store:
    bucket = f"b{uuid.uuid4().hex[:12]}"
    session().client("s3", endpoint_url=aws).create_bucket(Bucket=bucket)
    return Store(Aws(), bucket, "results/")


def test_the_last_part_of_a_chord_wins_once(store: Store) -> None:
    chord = Chord(store, uuid.uuid4().hex)
    assert chord.end_part("a", 1, b"A") is None, "its size is not known yet"
    chord.set_size(2)
    whole = chord.end_part("b", 0, b"B")
    assert whole is not None
    assert whole.parts == [b"B", b"A"]
    assert chord.end_part("a", 1, b"A") is None, "another part has won"
    again = chord.end_part("b", 0, b"B")
    assert again is not None, "it was killed before it had sent the callback, and is done again"
    chord.finish()
    assert chord.end_part("b", 0, b"B") is None, "the callback has been sent"


def test_a_part_that_was_added_is_waited_for(store: Store) -> None:
    chord = Chord(store, uuid.uuid4().hex)
    chord.set_size(1)
    chord.add("added")
    assert chord.end_part("a", 0, b"A") is None
    whole = chord.end_part("added", 1, b"B")
    assert whole is not None
    assert whole.parts == [b"A", b"B"]


def test_of_two_writers_of_a_new_object_one_wins(store: Store) -> None:
    assert store.put_new("claim", b"first")
    assert not store.put_new("claim", b"second")
    assert store.get("claim") == b"first"
    assert store.get("nothing") is None
    store.delete("claim", "nothing")
    assert store.get("claim") is None


def test_what_is_held_stays_out_of_sight_and_comes_again_afterwards(aws: str) -> None:
    sqs = session().client("sqs", endpoint_url=aws)
    url = sqs.create_queue(QueueName=f"k{uuid.uuid4().hex[:8]}", Attributes={"VisibilityTimeout": "2"})["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x")
    [message] = sqs.receive_message(QueueUrl=url)["Messages"]
    keeper = Keeper(lambda _: sqs)
    keeper.hold(message["ReceiptHandle"], url, 2)
    until_s = time.monotonic() + 6
    while time.monotonic() < until_s:
        assert "Messages" not in sqs.receive_message(QueueUrl=url)
    keeper.drop(message["ReceiptHandle"])
    wait_until(lambda: "Messages" in sqs.receive_message(QueueUrl=url), what="the message")
    keeper.close()
