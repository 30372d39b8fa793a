"""An application that uses settings alone, without `configure`, without a bucket, without AWS in its environment."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery
from kombu.common import oid_from

from celery_sqs import options
from tests.support import alone
from tests.support.aws import ACCESS, session
from tests.support.services import PATIENCE_S, REPOSITORY, celery_worker, users_environ


@pytest.fixture
def nothing_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_the_first_calls_of_a_process_are_answered(aws_endpoint: str, nothing_of_aws: None, tmp_path: Path) -> None:
    """Their messages went out with Celery's own address, before there was a backend; credentials, region and endpoint
    did not reach the results; a prefix without a hyphen was read as one with it."""
    prefix = f"a{uuid.uuid4().hex[:8]}"
    keys = ACCESS["AWS_ACCESS_KEY_ID"], ACCESS["AWS_SECRET_ACCESS_KEY"]
    app = alone.make(prefix, aws_endpoint, *keys)
    own = dict(zip(("ALONE_KEY_ID", "ALONE_SECRET"), keys, strict=True))
    env = users_environ(ALONE_PREFIX=prefix, ALONE_ENDPOINT=aws_endpoint, PYTHONPATH=str(REPOSITORY), **own)
    worker = celery_worker("tests.support.alone", tmp_path / "log", env, "--concurrency", "1")
    with worker, ThreadPoolExecutor(4) as threads:
        first = list(threads.map(lambda n: app.send_task("alone.double", (n,)), range(4)))
        found = list(threads.map(lambda result: result.get(timeout=PATIENCE_S), first))
    assert found == [0, 2, 4, 6]
    sqs = session().client("sqs", endpoint_url=aws_endpoint, region_name="eu-west-1")
    names = [url.rpartition("/")[2] for url in sqs.list_queues(QueueNamePrefix=prefix)["QueueUrls"]]
    assert f"{prefix}celery" in names
    assert sum(name.startswith(f"{prefix}replies-") for name in names) == 1, names
    app.backend.collector.close(delete_queue=True)


def test_an_address_that_celery_makes_while_the_backend_is_made_is_put_right(nothing_of_aws: None) -> None:
    """Another thread finds no address, and writes its own over this one's."""
    app = alone.make(f"a{uuid.uuid4().hex[:8]}", "http://127.0.0.1:1", "key", "secret")
    _ = app.backend
    own = oid_from(app, threads=True)
    app._local.oid = own
    message = app.amqp.create_task_message("id", "alone.double", (1,), {}, reply_to=own)
    with app.connection_for_write() as connection, suppress(Exception):  # nothing listens there
        app.amqp.send_task_message(app.amqp.Producer(connection, auto_declare=False), "alone.double", message)
    assert message.properties["reply_to"] == app.backend.reply_queue == app.thread_oid


def test_the_brokers_url_is_read_as_the_transport_reads_it(nothing_of_aws: None) -> None:
    app = Celery("any", set_as_current=False, broker=f"sqs://AKID:{'a%2Fb%2Bc'}@sqs.local:9324//")
    app.conf.broker_transport = "celery_sqs.transport:Transport"
    found = options.of(app)
    assert (found.access_key_id, found.secret_access_key) == ("AKID", "a/b+c")
    assert found.endpoint_url == "http://sqs.local:9324"
    assert "a/b+c" not in repr(found)
    assert options.Options(prefix="p", access_key_id="AKID", secret_access_key="a/b+c").broker_url == (
        "sqs://AKID:a%2Fb%2Bc@"
    )


@pytest.mark.parametrize(("given", "begins"), [("shop", "shop"), ("shop-", "shop-"), ("", ""), ("a--", "a--")])
def test_a_prefix_is_what_queues_names_begin_with(nothing_of_aws: None, given: str, begins: str) -> None:
    app = alone.make(given, "http://localhost", "key", "secret")
    assert options.of(app).queue_name_prefix == begins
