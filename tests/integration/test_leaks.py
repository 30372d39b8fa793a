"""What a process knows of others does not grow with how many there ever were (C11)."""

from __future__ import annotations

import uuid

import pytest

from celery_sqs.scaler.estimates import SEEN, Boots
from celery_sqs.transport import channel as transport
from celery_sqs.transport.fanout import REPLY_EXCHANGE
from faceapp import broker
from faceapp.config import Settings


def test_boots_of_gone_instances_are_forgotten_and_none_counts_twice() -> None:
    """C11: each boot was kept for ever."""
    boots = Boots(1.0)
    for n in range(3 * SEEN):
        boots.add("i-old", 1, 40.0)  # at each tick
        boots.add(f"i-{n}", 1, 20.0)
    assert len(boots._seen) == SEEN
    assert boots.quantile(1.0) == 20.0  # the old one's was counted once, and pushed out


def test_a_worker_knows_so_many_of_those_that_asked(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """C11: each process that ever asked by remote control was kept for ever."""
    monkeypatch.setattr(transport, "REPLY_QUEUES", 3)
    app, sqs = broker.create_app(stack), broker.sqs_client()
    with app.connection_for_write() as connection:
        channel, asked = connection.default_channel, []
        for _ in range(10):
            asked.append(f"{uuid.uuid4().hex[:12]}.{REPLY_EXCHANGE}")
            sqs.create_queue(QueueName=channel.canonical_queue_name(asked[-1]))
            for each in (asked[-1], asked[0]):
                channel._put(each, {"body": "{}", "properties": {"delivery_tag": "x"}})
        known = [name for name in channel._queue_cache if name.endswith("reply-celery-pidbox")]
        assert known == [channel.canonical_queue_name(each) for each in (asked[0], *asked[-2:])]
