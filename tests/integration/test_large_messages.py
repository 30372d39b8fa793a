"""Messages that are larger than SQS takes: in S3, and gone with their message; or an error that says what to set."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import celery_sqs
from celery_sqs import MessageTooLarge
from celery_sqs.aws import Aws
from celery_sqs.transport.deletions import Done
from celery_sqs.transport.offload import OBJECT, POINTER
from tests.support import orders
from tests.support.place import Place, notes, place
from tests.support.services import wait_until

LIMIT_BYTES = 2048
LARGE = "ä" * LIMIT_BYTES


@pytest.fixture
def mine(aws: str) -> Place:
    return place(aws, largest_message_bytes=LIMIT_BYTES)


@pytest.fixture(scope="module", params=["prefork", "gevent"])
def worked(
    request: pytest.FixtureRequest, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """With a worker that polls in an event loop, and with one that has none."""
    found = place(aws_endpoint, largest_message_bytes=LIMIT_BYTES, visibility_s=3)
    with found.worker(tmp_path_factory.mktemp("orders"), "--pool", request.param, "--concurrency", "2"):
        yield found


def is_clean(place: Place) -> bool:
    """Whether nothing of the messages is left."""
    return not place.objects() and not any(place.counts())


def test_a_large_message_is_done_and_leaves_nothing_behind(worked: Place, aws: str) -> None:
    app = worked.app
    results = [app.send_task("orders.length", args=[LARGE + "x" * n]) for n in range(12)]
    assert [each.get(timeout=240) for each in results] == [LIMIT_BYTES + n for n in range(12)]
    wait_until(lambda: is_clean(worked), what="the end of the objects and messages")


@pytest.mark.slow
def test_a_worker_killed_with_a_large_message_loses_none(aws: str, tmp_path: Path) -> None:
    mine = place(aws, largest_message_bytes=LIMIT_BYTES, visibility_s=3)
    word = "w" * LIMIT_BYTES
    mine.app.send_task("orders.note", args=[word, 2.0], ignore_result=True)
    with mine.worker(tmp_path, "--pool", "threads") as process:
        wait_until(lambda: notes(tmp_path) == [f"{word} begins"], what="the first try")
        process.kill()
    assert len(mine.objects()) == 1
    with mine.worker(tmp_path, "--pool", "threads"):
        wait_until(lambda: f"{word} ends" in notes(tmp_path), what="the second try")
        wait_until(lambda: is_clean(mine), what="the end of the objects and messages")


def test_a_small_message_touches_no_bucket(mine: Place) -> None:
    mine.app.send_task("orders.length", args=["x" * 500], ignore_result=True)
    assert mine.objects() == []


@pytest.mark.slow
def test_a_large_message_with_a_countdown_comes_once(worked: Place, aws: str) -> None:
    result = worked.app.send_task("orders.length", args=[LARGE], countdown=13)
    assert result.get(timeout=240) == LIMIT_BYTES
    wait_until(lambda: is_clean(worked), what="the end of the objects and messages")


def test_what_is_sent_on_names_the_same_object(mine: Place) -> None:
    """An ETA beyond SQS's 15 minutes: the old message goes, its text stays."""
    mine.app.send_task("orders.length", args=[LARGE], countdown=5000, ignore_result=True)
    with mine.app.connection_for_read() as connection:
        channel = connection.default_channel
        sent = {"Body": json.dumps({POINTER: mine.objects()[0].partition("/")[2], "properties": {}})}
        mine.sqs.purge_queue(QueueUrl=mine.queue())
        mine.sqs.send_message(QueueUrl=mine.queue(), MessageBody=sent["Body"])
        received = mine.sqs.receive_message(QueueUrl=mine.queue())["Messages"]
        assert channel._take_in("celery", mine.queue(), channel._whole(mine.queue(), received)) == []
        channel._deletions.flush()
    assert len(mine.objects()) == 1
    assert mine.counts() == [0, 0, 1]


def test_a_retry_has_an_object_of_its_own(worked: Place, aws: str) -> None:
    result = worked.app.send_task("orders.fail_once", args=[LARGE])
    assert result.get(timeout=240) == LARGE
    wait_until(lambda: is_clean(worked), what="the end of the objects and messages")


def test_the_gate_sees_the_whole_message(mine: Place) -> None:
    seen: list[str] = []
    app = orders.made(mine.options)
    app.send_task("orders.length", args=[LARGE], ignore_result=True)

    def refuse(body: str) -> str:
        seen.append(body)
        return "for a test"

    celery_sqs.configure(app, celery_sqs.Options(**mine.options, hooks=celery_sqs.Hooks(refuse=refuse)))
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        received = mine.sqs.receive_message(QueueUrl=mine.queue())["Messages"]
        assert channel._take_in("celery", mine.queue(), channel._whole(mine.queue(), received)) == []
    [body] = seen
    assert json.loads(json.loads(body)["body"])[0] == [LARGE]
    assert len(mine.objects()) == 1, "who refuses a message deletes nothing"


def test_without_a_bucket_sending_says_what_to_set(mine: Place) -> None:
    app = orders.made({**mine.options, "results_bucket": ""})
    with pytest.raises(
        MessageTooLarge, match=r"\(orders.length\) for celery has \d+ bytes of at most 2048: set messages_bucket or"
    ):
        app.send_task("orders.length", args=[LARGE], ignore_result=True)


def test_what_all_listen_to_is_never_in_s3(mine: Place) -> None:
    """SNS has SQS's limit, and no worker could tell when all have read it."""
    with pytest.raises(MessageTooLarge, match=r"for all that listen to celery\.pidbox has"):
        mine.app.control.broadcast("rate_limit", arguments={"task_name": LARGE, "rate_limit": "1/s"})
    assert mine.objects() == []


def received(place: Place, body: str) -> tuple[list[Any], Any]:
    """What a channel makes of this body on the place's queue, and the channel."""
    place.app.send_task("orders.length", args=[""], ignore_result=True)  # makes the queue
    place.sqs.purge_queue(QueueUrl=place.queue())
    place.sqs.send_message(QueueUrl=place.queue(), MessageBody=body)
    messages = place.sqs.receive_message(QueueUrl=place.queue())["Messages"]
    with place.app.connection_for_read() as connection:
        channel = connection.default_channel
        found = channel._whole(place.queue(), messages)
        channel._deletions.flush()
        return found, channel


@pytest.mark.parametrize(
    "name", ["../celery-results/x", "0" * 31, "0" * 33, "G" * 32, ["0" * 32], {"Bucket": "b"}, 7, f"{'0' * 32}\n", ""]
)
def test_a_pointer_that_we_did_not_write_is_followed_nowhere(mine: Place, name: Any, caplog: Any) -> None:
    found, _ = received(mine, json.dumps({POINTER: name, "properties": {}}))
    assert found == []
    assert "names an object that is none of ours" in caplog.text
    assert sum(mine.counts()) == 1, "it is left for the dead letters"


def test_the_bucket_is_never_the_messages(mine: Place, aws: str) -> None:
    other, name = f"o{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    mine.s3.create_bucket(Bucket=other)
    mine.s3.put_object(Bucket=other, Key=f"celery-messages/{name}", Body=b"{}")
    found, _ = received(mine, json.dumps({POINTER: name, "bucket": other, "Bucket": other, "properties": {}}))
    assert found == []
    assert mine.s3.list_objects_v2(Bucket=other)["KeyCount"] == 1


def test_a_message_whose_object_is_gone_is_a_dead_letter(mine: Place, caplog: Any) -> None:
    mine.app.send_task("orders.length", args=[""], ignore_result=True)
    dead = mine.redrive(1)
    found, _ = received(mine, json.dumps({POINTER: "0" * 32, "headers": {"id": "7"}, "properties": {}}))
    assert found == []
    assert "is gone: it was done before, or has waited longer than the bucket keeps objects" in caplog.text
    wait_until(
        lambda: (
            not mine.sqs.receive_message(QueueUrl=mine.queue()).get("Messages")
            and mine.sqs.receive_message(QueueUrl=dead, VisibilityTimeout=0).get("Messages")
        ),
        what="the dead letter",
    )


def test_without_dead_letters_a_message_whose_object_is_gone_is_deleted(mine: Place, caplog: Any) -> None:
    found, _ = received(mine, json.dumps({POINTER: "0" * 32, "headers": {"id": "7"}, "properties": {}}))
    assert found == []
    assert '"id": "7"' in caplog.text
    assert sum(mine.counts()) == 0


def test_an_object_larger_than_we_write_is_not_read(mine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = uuid.uuid4().hex
    mine.s3.put_object(Bucket=mine.options["results_bucket"], Key=f"celery-messages/{name}", Body=b"x" * 100)
    monkeypatch.setattr("celery_sqs.transport.offload.LARGEST_BYTES", 99)
    assert received(mine, json.dumps({POINTER: name, "properties": {}}))[0] == []
    assert sum(mine.counts()) == 1


def test_an_object_stays_until_its_message_is_deleted(mine: Place) -> None:
    """A message that SQS does not delete is delivered again, and needs its text."""
    mine.app.send_task("orders.length", args=[LARGE], ignore_result=True)
    [message] = mine.sqs.receive_message(QueueUrl=mine.queue())["Messages"]
    with mine.app.connection_for_read() as connection:
        channel = connection.default_channel
        [whole] = channel._whole(mine.queue(), [message])
        assert f"celery-messages/{whole[OBJECT]}" in mine.objects()
        channel._deletions.add(Done.of(mine.queue(), {**whole, "ReceiptHandle": "no receipt"}))
        channel._deletions.flush()
        assert len(mine.objects()) == 1
        channel._deletions.add(Done.of(mine.queue(), whole))
        channel._deletions.flush()
        assert mine.objects() == []


def test_credentials_that_cannot_be_had_for_a_moment_cost_no_message(
    mine: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised here would end the queue's polling, or the worker."""
    mine.app.send_task("orders.length", args=[LARGE], ignore_result=True)
    [message] = mine.sqs.receive_message(QueueUrl=mine.queue())["Messages"]
    with mine.app.connection_for_read() as connection:
        channel = connection.default_channel

        def no_credentials(*_: Any) -> None:
            raise RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired.")

        with monkeypatch.context() as patch:
            patch.setattr(Aws, "quick", no_credentials)
            assert channel._whole(mine.queue(), [message]) == []
            channel._offload.delete(["0" * 32])
        assert len(channel._whole(mine.queue(), [message])) == 1


def test_a_worker_without_the_bucket_leaves_the_message(mine: Place, caplog: Any) -> None:
    mine.app.send_task("orders.length", args=[LARGE], ignore_result=True)
    [message] = mine.sqs.receive_message(QueueUrl=mine.queue())["Messages"]
    with orders.made({**mine.options, "results_bucket": ""}).connection_for_read() as connection:
        assert connection.default_channel._whole(mine.queue(), [message]) == []
    assert "neither messages_bucket nor results_bucket is set" in caplog.text
    assert sum(mine.counts()) == 1


def test_simple_queues_read_them_too(mine: Place) -> None:
    with mine.app.connection_for_write() as connection:
        queue = connection.SimpleQueue("simple")
        queue.put({"text": LARGE})
        assert len(mine.objects()) == 1
        message = queue.get(timeout=60)
        assert message.payload == {"text": LARGE}
        message.ack()
        queue.close()
    assert mine.objects() == []
