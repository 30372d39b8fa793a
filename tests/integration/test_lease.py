"""The lease between real S3 clients, with a clock that the tests move."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from botocore.stub import Stubber

from celery_sqs.errors import LeaseLost, StorageUnavailable
from celery_sqs.scaler.lease import ACT_S, LEASE_S, RENEW_S, Lease
from faceapp import broker
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.scaler import LEASE_KEY, options
from tests.support.aws import plain_client, session


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def s3(aws: str) -> Any:
    return plain_client("s3", aws)


@pytest.fixture
def pair(stack: Settings, s3: Any) -> tuple[Lease, Lease, Clock]:
    """Two scalers' leases and the clock of both."""
    clock = Clock()
    first, second = (
        Lease(options(stack), aws_of(stack), client=s3, owner=name, clock=clock) for name in ("first", "second")
    )
    return first, second, clock


def test_one_of_two_holds_it_and_keeps_it(pair: tuple[Lease, Lease, Clock]) -> None:
    first, second, clock = pair
    for _ in range(30):
        assert first.hold()
        assert not second.hold()
        clock.now_s += 3
    assert first.fence() == 1
    with pytest.raises(LeaseLost, match="first has"):
        second.fence()


def test_the_other_takes_over_when_the_holder_is_gone_and_with_the_next_token(
    pair: tuple[Lease, Lease, Clock],
) -> None:
    first, second, clock = pair
    first.hold()
    token = first.fence()
    assert not second.hold()
    clock.now_s += LEASE_S - 0.1
    assert not second.hold()
    clock.now_s += 0.2
    assert second.hold()
    assert second.fence() == token + 1


def test_a_holder_that_slept_too_long_may_not_act(pair: tuple[Lease, Lease, Clock]) -> None:
    first, second, clock = pair
    first.hold()
    second.hold()
    clock.now_s += LEASE_S
    assert not first.held
    assert second.hold()
    with pytest.raises(LeaseLost):
        first.fence()
    assert not first.hold()
    assert second.fence() == 2


def test_a_holder_whose_write_took_long_may_not_act(
    pair: tuple[Lease, Lease, Clock], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, clock = pair
    first.hold()
    write = first._write

    def slow(*, holder: str) -> bool:
        done = write(holder=holder)
        clock.now_s += LEASE_S - ACT_S + 1
        return done

    monkeypatch.setattr(first, "_write", slow)
    with pytest.raises(LeaseLost):
        first.fence()
    monkeypatch.undo()
    assert first.fence() == 1


def test_a_holder_that_slept_and_was_not_missed_goes_on(pair: tuple[Lease, Lease, Clock]) -> None:
    first, _, clock = pair
    first.hold()
    clock.now_s += 10 * LEASE_S
    assert not first.held
    assert first.hold()
    assert first.fence() == 1


def test_of_two_that_take_it_at_once_one_gets_it(pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any) -> None:
    first, second, clock = pair
    third = Lease(options(stack), aws_of(stack), client=s3, owner="third", clock=clock)
    first.hold()
    second.hold()
    third.hold()
    clock.now_s += LEASE_S
    # Both have seen the same ETag; the condition on the write decides.
    assert second.hold()
    third._take()
    assert not third.held
    assert second.fence() == 2


def test_a_released_lease_is_taken_at_once(pair: tuple[Lease, Lease, Clock]) -> None:
    first, second, _ = pair
    first.hold()
    second.hold()
    first.release()
    assert second.hold()
    assert not first.hold()


def test_wall_clocks_do_not_matter(pair: tuple[Lease, Lease, Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, clock = pair
    first.hold()
    second.hold()
    for jump_s in (-1e9, 1e9):
        monkeypatch.setattr("time.time", lambda jump_s=jump_s: 1.8e9 + jump_s)
        clock.now_s += RENEW_S
        assert first.held
        assert not second.held
    monkeypatch.undo()
    assert first.hold()
    assert not second.hold()


def test_the_memory_goes_from_holder_to_holder(pair: tuple[Lease, Lease, Clock]) -> None:
    first, second, _ = pair
    first.hold()
    first.memory = {"spent_s": 12.5}
    first.release()
    second.hold()
    assert second.memory == {"spent_s": 12.5}


def test_a_deleted_lease_is_made_anew_and_its_token_does_not_fall_back(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any
) -> None:
    first, second, clock = pair
    first.hold()
    second.hold()
    s3.delete_object(Bucket=stack.gallery_bucket, Key=LEASE_KEY)
    clock.now_s += RENEW_S
    assert second.hold()
    assert not first.hold()
    assert second.fence() == 2


def test_a_lease_deleted_from_outside_is_taken_again_and_said_to_have_been_deleted(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """G3: it was logged as another scaler's."""
    first, second, clock = pair
    first.hold()
    s3.delete_object(Bucket=stack.gallery_bucket, Key=LEASE_KEY)
    clock.now_s += RENEW_S
    assert first.hold()
    assert first.fence() == 2
    assert f"the lease object {stack.gallery_bucket}/{LEASE_KEY} was deleted: it is taken again" in caplog.messages
    assert "another scaler" not in caplog.text
    clock.now_s += LEASE_S
    assert not second.hold()
    clock.now_s += LEASE_S
    assert second.hold()
    first.hold()
    assert "another scaler has taken the lease: this one stands by" in caplog.messages


def former(stack: Settings, s3: Any, **document: Any) -> None:
    """Write the lease as an earlier version did."""
    body = json.dumps({"holder": "old", "token": 41, "nonce": "", "memory": {"spent_s": 12.5}} | document)
    s3.put_object(Bucket=stack.out_bucket, Key=LEASE_KEY, Body=body.encode())


def keys(s3: Any, bucket: str) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def test_the_lease_is_in_the_gallery_bucket_and_the_out_bucket_stays_empty(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any
) -> None:
    """G1: in the out-bucket only results may be."""
    for lease in pair[:2]:
        lease.hold()
    assert keys(s3, stack.gallery_bucket) == [LEASE_KEY]
    assert not keys(s3, stack.out_bucket) + keys(s3, stack.in_bucket)


def test_a_former_lease_is_respected_while_it_is_held_and_removed_then(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any
) -> None:
    """G1, upgrade: a scaler of an earlier version may still run."""
    first, second, clock = pair
    for step in range(5):
        former(stack, s3, token=41 + step)
        assert not first.hold()
        assert not second.hold()
        assert first.holder == "old"
        with pytest.raises(LeaseLost, match="old has the scaler's lease"):
            first.fence()
        clock.now_s += LEASE_S - 0.1
    assert not first.hold()
    clock.now_s += 0.2
    assert first.hold()
    assert not second.hold()
    assert first.fence() == 46
    assert first.memory == {"spent_s": 12.5}
    assert not keys(s3, stack.out_bucket)


def test_a_former_lease_that_was_released_is_removed_at_once(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any
) -> None:
    """G1, upgrade"""
    first, second, _ = pair
    former(stack, s3, holder="")
    assert first.hold()
    assert first.fence() == 42
    assert not second.hold()
    assert not keys(s3, stack.out_bucket)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'"x"', b'{"holder": 7, "token": "x", "memory": 3}'])
def test_an_object_that_is_no_lease_is_somebodys_until_it_has_run_out(
    pair: tuple[Lease, Lease, Clock], stack: Settings, s3: Any, content: bytes
) -> None:
    lease, _, clock = pair
    s3.put_object(Bucket=stack.gallery_bucket, Key=LEASE_KEY, Body=content)
    assert not lease.hold()
    clock.now_s += LEASE_S
    assert lease.hold()
    document = json.loads(s3.get_object(Bucket=stack.gallery_bucket, Key=LEASE_KEY)["Body"].read())
    assert document["holder"] == "first"


def test_a_bucket_that_does_not_exist_is_said(aws: str, s3: Any) -> None:
    with pytest.raises(StorageUnavailable, match="lease cannot be read"):
        Lease(options(Settings(prefix="nobody")), aws_of(Settings()), client=s3).hold()


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
def test_a_write_that_meets_anothers_is_a_lost_race_and_no_trouble(stack: Settings, code: str) -> None:
    client = session().client("s3")
    with Stubber(client) as stub:
        stub.add_client_error("get_object", "NoSuchKey")
        stub.add_client_error("put_object", code)
        lease = Lease(replace(options(stack), former_lease_bucket=""), aws_of(stack), client=client)
        assert not lease.hold()


def test_the_lease_is_asked_for_in_our_own_accounts_bucket_only(stack: Settings) -> None:
    """A bucket's name that was free for a moment may be anybody's."""
    ours = broker.options(replace(stack, account="123456789012"))
    assert ours.aws.bucket_owner == "123456789012"
