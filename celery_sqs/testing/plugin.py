"""pytest's plugin: fixtures for tests of an application on celery_sqs. docs/celery.md shows them.

pytest loads it at each start, so what it needs is imported by the fixtures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from celery_sqs.testing.aws import EmbeddedAws
    from celery_sqs.testing.worker import Worker

SHOWN_LINES = 60
"""Of a worker's output, beside a test that failed."""


class StartWorker(Protocol):
    """The fixture `sqs_worker`."""

    def __call__(self, app: str, *options: str, **env: str) -> Worker: ...


@pytest.fixture(scope="session")
def sqs_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    """An embedded AWS, to which this process and its children talk from now on to the session's end: what an
    application's threads do between two tests reaches no real account either."""
    from celery_sqs.testing.aws import embedded_aws

    with pytest.MonkeyPatch.context() as patch, embedded_aws(tmp_path_factory.mktemp("aws") / "log") as aws:
        aws.use(patch)
        yield aws
        if temporary := sys.modules.get("celery_sqs.queues.temporary"):
            temporary.temporary_queues.delete_all()


@pytest.fixture
def sqs_worker(sqs_aws: EmbeddedAws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Starts workers of applications on the embedded AWS: `sqs_worker("shop")`, with an app as for `celery -A` and
    options as for `celery worker`; `NAME="value"` sets a variable of its environment. The buckets that the
    application's options name are made.

    The workers end with the test, and what is left in their queues goes.
    """
    from celery_sqs.testing.application import Place
    from celery_sqs.testing.worker import importing_as_here, started

    folder = tmp_path_factory.mktemp("workers")
    with ExitStack() as stack:

        def start(app: str, *options: str, **env: str) -> Worker:
            place = Place.of(app, sqs_aws)
            place.make_buckets()
            stack.callback(place.empty_queues)
            log = folder / f"{len(list(folder.iterdir()))}.log"
            worker = stack.enter_context(started(app, *options, log=log, env={**importing_as_here(), **env}))
            stack.callback(lambda: print(_end_of(worker)))
            return worker

        yield start


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, timeout_s=60, what="the mail")`: returns as soon as the condition is true, and fails the
    test where it does not come true in time."""
    from celery_sqs.testing.waiting import wait_until

    return wait_until


def _end_of(worker: Worker) -> str:
    lines = worker.output().splitlines()
    return "\n".join(["--- the worker's last lines ---", *lines[-SHOWN_LINES:]])
