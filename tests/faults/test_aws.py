"""S3 and SQS that answer 503, answer late, refuse what is too much, end connections, and hand out messages twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import proxy as faults
from tests.faults.conftest import Record, Running
from tests.faults.outage import Stream, account, alive, post
from tests.faults.proxy import Fault, FaultProxy
from tests.support.services import wait_until

LONG_S = 30.0
SHORT_S = 5.0
VISIBILITY_S = 40
"""Of a message whose receive or deletion was lost; on AWS it is 90 s, and the tests would wait for that."""
AT_ONCE = 20
PACE_S = 0.2


@pytest.fixture
def proxy(aws: str) -> Iterator[FaultProxy]:
    with FaultProxy(aws) as proxy:
        yield proxy


def stream_for(seconds: float) -> int:
    """Photos that are still being posted when an outage of so long ends."""
    return AT_ONCE + round((seconds + 3) / PACE_S)


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        pytest.param("s3", SHORT_S),
        pytest.param("s3", LONG_S, marks=pytest.mark.slow_fault),
        pytest.param("sqs", LONG_S, marks=pytest.mark.slow_fault),
    ],
)
def test_a_service_that_is_unavailable(
    run: Running, record: Record, proxy: FaultProxy, service: str, seconds: float
) -> None:
    with run(endpoint=proxy.url, visibility_s=VISIBILITY_S) as system, alive(*system.services.running):
        sent = Stream(system, stream_for(seconds), at_once=AT_ONCE, pace_s=PACE_S)
        wait_until(lambda: len(sent.replies) >= 3, timeout_s=240, what="the first replies")
        with proxy.fault(faults.unavailable, service=service) as hits, faults.lasting(seconds):
            answer = post(system)
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
        found, refused = account(system, sent)
        left = {each.photo.name for each in refused} & set(system.photos())
        assert not left, "refused, and kept all the same"
        record(
            f"{service.upper()} answers 503 for {seconds:g} s ({hits.total()} requests)",
            f"{len(refused)} photos refused with 503, the others answered",
            found,
        )


SLOW_S = 2.0
PER_S = 5.0


@pytest.mark.slow_fault
@pytest.mark.parametrize(
    ("happens", "fault"),
    [
        pytest.param(f"answer {SLOW_S:g} s late", faults.slow(SLOW_S), id="slow"),
        pytest.param(f"take {PER_S:g} requests a second", faults.throttled(per_s=PER_S), id="throttled"),
    ],
)
def test_services_that_are_slow(run: Running, record: Record, proxy: FaultProxy, happens: str, fault: Fault) -> None:
    with run(endpoint=proxy.url, visibility_s=VISIBILITY_S) as system, alive(*system.services.running):
        sent = Stream(system, stream_for(LONG_S), at_once=AT_ONCE, pace_s=PACE_S)
        wait_until(lambda: len(sent.replies) >= 3, timeout_s=240, what="the first replies")
        with proxy.fault(fault, service="s3"), proxy.fault(fault, service="sqs"), faults.lasting(LONG_S):
            pass
        found, refused = account(system, sent)
        record(f"S3 and SQS {happens} for {LONG_S:g} s", f"{len(refused)} photos refused with 503", found)


@pytest.mark.slow_fault
def test_connections_that_are_cut(run: Running, record: Record, proxy: FaultProxy) -> None:
    """Before AWS has seen the request, after it was done, and in the middle of the answer."""
    with run(endpoint=proxy.url, visibility_s=VISIBILITY_S) as system, alive(*system.services.running):
        sent = Stream(system, stream_for(LONG_S), at_once=AT_ONCE, pace_s=PACE_S)
        wait_until(lambda: len(sent.replies) >= 3, timeout_s=240, what="the first replies")
        with (
            proxy.fault(faults.cut_before, every=4),
            proxy.fault(faults.cut_after, every=4),
            proxy.fault(faults.cut_within, every=4),
            faults.lasting(LONG_S),
        ):
            pass
        found, refused = account(system, sent)
        record(
            f"connections to AWS cut for {LONG_S:g} s: more than half, most of them done",
            f"{len(refused)} photos refused with 503, {found.again} recognised twice",
            found,
        )


@pytest.mark.slow_fault
def test_nobody_listens(run: Running, record: Record, proxy: FaultProxy) -> None:
    with run(endpoint=proxy.url, visibility_s=VISIBILITY_S) as system, alive(*system.services.running):
        sent = Stream(system, stream_for(SHORT_S), at_once=AT_ONCE, pace_s=PACE_S)
        wait_until(lambda: len(sent.replies) >= 3, timeout_s=240, what="the first replies")
        with proxy.refusing(), faults.lasting(SHORT_S):
            pass
        found, refused = account(system, sent)
        record(f"AWS refuses connections for {SHORT_S:g} s", f"{len(refused)} photos refused with 503", found)


def test_messages_that_are_delivered_twice(run: Running, record: Record, proxy: FaultProxy) -> None:
    """The same message in two receives, and again after its deletion was lost."""
    twice = faults.Twice()
    with run(endpoint=proxy.url, workers=2, task_time_limit_s=8, visibility_s=10) as system:
        with (
            alive(*system.services.running),
            proxy.fault(twice, service="sqs", operations=("ReceiveMessage",)),
            proxy.fault(faults.not_deleted, operations=("DeleteMessage", "DeleteMessageBatch"), every=2),
        ):
            sent = Stream(system, 60, at_once=60, pace_s=0)
            sent.join()
        found, refused = account(system, sent)
        assert not refused
        assert twice.count
        record(
            "messages delivered twice, and deletions lost",
            f"{twice.count} delivered twice, {found.again} recognised twice",
            found,
        )
