"""Options of the framework that cannot be used, each with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from celery_sqs import ConfigurationError, Options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"queues": "orders"}, "queues is a text: write ('orders',)"),
        ({"endpoint_url": "127.0.0.1:4566"}, "it begins with http:// or https://"),
        ({"results_bucket": "s3://shop-results"}, "'s3://shop-results' is no bucket's name"),
        ({"wait_s": 21}, "wait_s is 21, and SQS takes 0 to 20"),
        ({"prefix": "a shop"}, "the prefix 'a shop' cannot begin a queue's name"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Options(**{"prefix": "shop", **options})
    assert sentence in str(raised.value)
