"""The shop's own tests: `pytest` in this folder, with the extra `testing`. AWS is on this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import shop

from celery_sqs.testing.aws import EmbeddedAws
from celery_sqs.testing.plugin import StartWorker


def test_an_order_is_priced_packed_and_told_of(sqs_worker: StartWorker) -> None:
    sqs_worker("shop", "--concurrency", "2")
    came = shop.place_order({"tea": 2, "cup": 2, "pot": 1}, packing_s=0.1, mail_after_s=0.1)
    assert came == {"cost": 72.0, "order": "packed", "mail": "'Your order' sent to ada@example.org"}


def test_what_is_not_sold_here_is_a_failure(sqs_worker: StartWorker) -> None:
    sqs_worker("shop", "--concurrency", "1")
    with pytest.raises(KeyError, match="sofa"):
        shop.price.delay("sofa", 1).get(timeout=60)


def test_mails_wait_in_a_queue_of_their_own(sqs_aws: EmbeddedAws, wait_until: Callable[..., None]) -> None:
    shop.send_mail.apply_async(("ada@example.org", "Hello"), ignore_result=True)
    sqs = sqs_aws.client("sqs")
    url = sqs.get_queue_url(QueueName="shop-mail")["QueueUrl"]
    assert "Hello" in sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"]
