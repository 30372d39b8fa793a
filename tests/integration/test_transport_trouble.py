"""Refused calls, endpoints that are down, missing queues, messages of other Celerys, options that cannot be used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from celery import Celery

from celery_sqs import ConfigurationError, Options
from celery_sqs.options import of as options_of
from tests.faults.proxy import FaultProxy, refused
from tests.support import orders
from tests.support.place import Place, notes, place
from tests.support.services import PATIENCE_S, REPOSITORY, aws_environ, users_environ, wait_until

denied = partial(refused, status=403, code="AccessDenied", message="You may not do that.")
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--pool", "threads", "--concurrency", "2"]
"""Celery's options for a worker that needs no queue of its own, with those of `SILENT`."""
SILENT = ["--", "worker.enable_remote_control=off", "worker.send_task_events=off"]


@dataclass
class Site:
    """A place, a worker on it, and the proxy through which the worker reaches AWS."""

    mine: Place
    proxy: FaultProxy
    folder: Path
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def site(aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    mine, folder = place(aws_endpoint, visibility_s=2, largest_message_bytes=2048), tmp_path_factory.mktemp("site")
    with (
        FaultProxy(aws_endpoint) as proxy,
        mine.worker(folder, "--pool", "threads", "--concurrency", "2", endpoint=proxy.url) as process,
    ):
        yield Site(mine, proxy, folder, process)


@pytest.mark.parametrize(
    ("service", "operation"),
    [
        ("sqs", "ReceiveMessage"),
        ("sqs", "DeleteMessageBatch"),
        ("sqs", "ChangeMessageVisibilityBatch"),
        ("s3", "GetObject"),
        ("s3", "DeleteObjects"),
    ],
)
def test_a_worker_outlives_every_refused_call(site: Site, aws: str, service: str, operation: str) -> None:
    word, app = f"{uuid.uuid4().hex} {'x' * 3000}", site.mine.app
    with site.proxy.fault(denied, service=service, operations=(operation,)) as hits:
        app.send_task("orders.note", args=[word, 1.5], ignore_result=True)
        wait_until(lambda: hits[operation], what="a refusal")
    wait_until(lambda: f"{word} ends" in notes(site.folder), what="the task")
    after = uuid.uuid4().hex
    app.send_task("orders.note", args=[after], ignore_result=True)
    wait_until(lambda: f"{after} ends" in notes(site.folder), what="another task")
    assert site.process.poll() is None


@pytest.mark.parametrize(
    ("service", "operation"),
    [("sqs", "GetQueueUrl"), ("sqs", "CreateQueue"), ("sqs", "SendMessage"), ("s3", "PutObject")],
)
def test_who_sends_is_told_which_call_was_refused(
    aws: str, monkeypatch: pytest.MonkeyPatch, service: str, operation: str
) -> None:
    with FaultProxy(aws) as proxy, proxy.fault(denied, service=service, operations=(operation,)) as hits:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        app = place(aws, largest_message_bytes=2048).app
        with pytest.raises(ClientError, match=rf"AccessDenied.* when calling the {operation} operation"):
            app.send_task("orders.note", args=["x" * 3000], ignore_result=True)
        assert hits[operation] == 1, "what is refused is not tried again"


def test_a_worker_waits_for_an_endpoint_that_is_down_and_comes_back(aws: str, tmp_path: Path) -> None:
    mine = place(aws)
    mine.app.send_task("orders.note", args=["first"], ignore_result=True)
    with FaultProxy(aws) as proxy:
        with proxy.refusing():
            env = users_environ(PYTHONUNBUFFERED="1") | aws_environ(proxy.url)
            env |= {"ORDERS_OPTIONS": json.dumps(mine.options), "ORDERS_NOTES": str(tmp_path / "notes")}
            log = tmp_path / "log"
            command = [sys.executable, "-m", "celery", "-A", "tests.support.orders", "worker", "--pool", "threads"]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, cwd=REPOSITORY, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            wait_until(lambda: "Cannot connect to" in log.read_text() or process.poll() is not None, what="a try")
        try:
            wait_until(lambda: "first ends" in notes(tmp_path) or process.poll() is not None, what="the first task")
            with proxy.refusing():
                wait_until(lambda: "a poll of a work queue failed" in log.read_text(), what="a poll without an answer")
            mine.app.send_task("orders.note", args=["second"], ignore_result=True)
            wait_until(lambda: "second ends" in notes(tmp_path) or process.poll() is not None, what="the second task")
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.mark.parametrize("operation", ["GetQueueUrl", "CreateQueue"])
def test_a_worker_that_may_not_make_a_call_at_its_start_ends_with_its_name(
    aws: str, tmp_path: Path, operation: str
) -> None:
    with FaultProxy(aws) as proxy, proxy.fault(denied, operations=(operation,)):
        done = run_worker(proxy.url, place(aws), tmp_path)
    assert done.returncode != 0
    assert f"An error occurred (AccessDenied) when calling the {operation} operation" in done.stdout.splitlines()[-1]


def test_a_worker_goes_on_without_calls_that_only_tell(
    aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The length and the attributes of a queue, its tags, and a subscription that others have made."""
    mine, names = place(aws), ("GetQueueAttributes", "Subscribe", "ListQueueTags")
    with FaultProxy(aws) as proxy, proxy.fault(denied, operations=names) as hits:
        with mine.worker(tmp_path, "--pool", "threads", endpoint=proxy.url):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            mine.app.send_task("orders.note", args=["w"], ignore_result=True)
            wait_until(lambda: "w ends" in notes(tmp_path), what="the task")
        assert hits["GetQueueAttributes"]


def test_a_worker_without_its_queue_ends_with_a_sentence(aws: str, tmp_path: Path) -> None:
    done = run_worker(aws, place(aws, create_queues=False), tmp_path)
    assert done.returncode != 0
    assert re.search(r"the queue p\w+-celery does not exist, and is not to be made here", done.stdout)


def test_a_worker_without_one_of_its_queues_ends_with_a_sentence(aws: str, tmp_path: Path) -> None:
    mine = place(aws, create_queues=False, queues=["celery", "mail"])
    mine.sqs.create_queue(QueueName=f"{mine.options['prefix']}-celery")
    done = run_worker(aws, mine, tmp_path)
    assert done.returncode != 0
    assert re.search(r"the queue p\w+-mail does not exist, and is not to be made here", done.stdout)


def run_worker(endpoint: str, mine: Place, folder: Path) -> subprocess.CompletedProcess[str]:
    env = users_environ() | aws_environ(endpoint)
    env |= {"ORDERS_OPTIONS": json.dumps(mine.options), "ORDERS_NOTES": str(folder / "notes")}
    command = [sys.executable, "-m", "celery", "-A", "tests.support.orders", "worker", "--pool", "threads"]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("protocol", [1, 2])
def test_messages_of_other_celerys_are_done(site: Site, aws: str, protocol: int) -> None:
    word, app = uuid.uuid4().hex, site.mine.app
    app.conf.task_protocol = protocol
    app.send_task("orders.note", args=[word], headers={"of-a-later-version": {"a": [1]}}, ignore_result=True)
    wait_until(lambda: f"{word} ends" in notes(site.folder), what="the task")


@contextmanager
def counted(proxy: FaultProxy) -> Iterator[dict[str, int]]:
    """Calls that a role of least privilege may not make."""
    with proxy.fault(denied, operations=("ListQueues", "CreateQueue", "CreateTopic", "TagQueue")) as hits:
        yield hits


def test_predefined_queues_need_neither_a_list_nor_a_new_queue(
    aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = place(aws)
    url = mine.sqs.create_queue(QueueName=f"made-by-others-{mine.options['prefix']}")["QueueUrl"]
    transport = {"predefined_queues": {"celery": {"url": url}}}
    with FaultProxy(aws) as proxy, counted(proxy) as hits:
        options = [*QUIET, *SILENT]
        with mine.worker(tmp_path, *options, endpoint=proxy.url, ORDERS_TRANSPORT=json.dumps(transport)):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            orders.made(mine.options, transport=transport).send_task("orders.note", args=["w"], ignore_result=True)
            wait_until(lambda: "w ends" in notes(tmp_path), what="the task")
        assert not hits
    assert not mine.sqs.list_queues(QueueNamePrefix=f"{mine.options['prefix']}-").get("QueueUrls")


def test_queues_that_are_there_need_neither_a_list_nor_a_new_queue(
    aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = place(aws, create_queues=False)
    mine.sqs.create_queue(QueueName=f"{mine.options['prefix']}-celery")
    with FaultProxy(aws) as proxy, counted(proxy) as hits:
        with mine.worker(tmp_path, *QUIET, *SILENT, endpoint=proxy.url):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            mine.app.send_task("orders.note", args=["w"], ignore_result=True)
            wait_until(lambda: "w ends" in notes(tmp_path), what="the task")
        assert not hits


def test_botocores_settings_are_honoured(aws: str) -> None:
    """kombu's `client-config`, which was ignored."""
    config = {"connect_timeout": 7, "user_agent_extra": "shop"}
    app = orders.made(place(aws).options, transport={"client-config": config})
    with app.connection_for_write() as connection:
        client = connection.default_channel.sqs()
        assert client.meta.config.connect_timeout == 7
        assert client.meta.config.user_agent_extra == "shop"
        assert client.meta.config.read_timeout > 20, "the others stay"
        assert connection.default_channel._quick("any").meta.config.connect_timeout == 7
    assert options_of(orders.made(place(aws, client_config=config).options)).aws.config == config


def test_a_setting_that_botocore_does_not_have_is_refused(aws: str) -> None:
    app = orders.made(place(aws).options, transport={"client-config": {"patience": 7}})
    with pytest.raises(ConfigurationError, match=r"client-config.*patience"):
        app.send_task("orders.note", args=["w"], ignore_result=True)


@pytest.mark.parametrize("prefix", ["a.b", "a b", "ä", "a/b", "a:b", "x" * 58, "shop\n"])
def test_a_prefix_that_no_queue_can_have_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot begin a queue's name: it takes up to 57 of A-Z"):
        Options(prefix=prefix)


@pytest.mark.parametrize("queue", ["", "two words", "ä", "a\n"])
def test_a_queue_that_cannot_be_is_refused(queue: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        Options(prefix="shop", queues=(queue,))


@pytest.mark.parametrize("size_bytes", [0, 1023, 2**20 + 1])
def test_a_size_that_sqs_does_not_take_is_refused(size_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="SQS takes 1024 to"):
        Options(prefix="shop", largest_message_bytes=size_bytes)


def test_names_that_kombu_translates_stay_good() -> None:
    options: dict[str, Any] = {"prefix": "S_h-0", "queues": ("orders.high", "mail:bulk", "x.fifo")}
    assert Options(**options).queues == options["queues"]


def test_settings_alone_say_what_options_say() -> None:
    """Of the transport's options each that is one of ours."""
    options = Options(
        prefix="shop",
        queues=("orders", "mail"),
        priority_steps=(0, 5),
        largest_message_bytes=2048,
        messages_bucket="large",
        client_config={"connect_timeout": 7},
        max_deliveries=0,
        create_queues=False,
    )
    app = Celery("settings", set_as_current=False)
    app.conf.broker_transport_options = options.transport_options()
    assert options_of(app) == options
