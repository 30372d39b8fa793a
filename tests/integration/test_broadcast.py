"""kombu's Broadcast: a message that every worker does."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_sqs import MessageTooLarge
from celery_sqs.transport.fanout import RETENTION_S
from tests.support import orders
from tests.support.place import notes, place
from tests.support.services import wait_until


def test_every_worker_does_a_broadcast_task(aws: str, tmp_path: Path) -> None:
    mine, folders = place(aws), [tmp_path / "1", tmp_path / "2"]
    for each in folders:
        each.mkdir()
    app = orders.made(mine.options, broadcast="refresh")
    options = ["--pool", "threads", "--concurrency", "2"]
    with (
        mine.worker(folders[0], *options, "--hostname", "one@test", ORDERS_BROADCAST="refresh"),
        mine.worker(folders[1], *options, "--hostname", "two@test", ORDERS_BROADCAST="refresh"),
    ):
        urls = mine.sqs.list_queues(QueueNamePrefix=f"{mine.options['prefix']}-bcast")["QueueUrls"]
        kept = [
            mine.sqs.get_queue_attributes(QueueUrl=each, AttributeNames=["MessageRetentionPeriod"])["Attributes"]
            for each in urls
        ]
        for n in range(3):
            app.send_task("orders.note", args=[f"{n}"], queue="refresh", ignore_result=True)
        app.send_task("orders.note", args=["once"], ignore_result=True)
        words = [f"{n} {what}" for n in range(3) for what in ("begins", "ends")]
        wait_until(lambda: all(set(words) <= set(notes(each)) for each in folders), what="the tasks in both")
        wait_until(lambda: any("once ends" in notes(each) for each in folders), what="the other task")
    assert sorted([*notes(folders[0]), *notes(folders[1])]) == sorted([*words, *words, "once begins", "once ends"])
    assert len(urls) == 2
    assert all(int(each["MessageRetentionPeriod"]) > RETENTION_S for each in kept), "a busy worker comes to it later"
    assert not mine.sqs.list_queues(QueueNamePrefix=f"{mine.options['prefix']}-bcast").get("QueueUrls")


def test_a_broadcast_that_sns_does_not_take_says_so(aws: str) -> None:
    mine = place(aws, largest_message_bytes=2**20)
    app = orders.made(mine.options, broadcast="refresh")
    with pytest.raises(MessageTooLarge, match="for all that listen to refresh has"):
        app.send_task("orders.note", args=["x" * 300_000], queue="refresh", ignore_result=True)
    assert mine.objects() == []
