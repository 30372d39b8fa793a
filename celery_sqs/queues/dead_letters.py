"""Requests that failed too often: which there are, why, and sending them again or dropping them.

SQS shows a message only by handing it out, so a look holds the dead letters for as long as it takes and gives them back
at once. What holds them ends by itself after `HOLD_S`, so a command that is killed loses nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.clocks import answered_s
from faceapp import broker
from faceapp.broker.messages import ENROL, ERASE, FORGET, RECOGNIZE, refusal
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable, DeadLetterNotFound, FaceappError
from faceapp.storage import Storage

TASKS = (RECOGNIZE, ENROL, FORGET, ERASE)
BATCH = 10
"""SQS hands out, deletes and releases at most this many messages a call."""
LIST_MOST = 1000
"""A list shows this many unless it is told otherwise."""
LOOK_MOST = 20_000
"""A letter is looked for among this many; SQS lets 120,000 messages of a queue be held at once."""
LOOK_S = 45.0
"""A look takes no longer; what it has seen until then is what it shows."""
HOLD_S = 60
"""Longer than `LOOK_S`, so that a look sees each letter once, with time to act on what it found."""
AT_ONCE = 10
"""Letters that are looked up in S3, or sent, at the same time."""
SHORTEST_ID = 6
"""An id may be shortened to this many characters where that is clear."""

Photo = Literal["there", "gone", "none", "unknown"]
"""Whether what the task is about is still in S3; `none` for a task without a photo, `unknown` when S3 does not say."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message of the dead letter queue, and what could be found out about it."""

    message_id: str
    sent_s: float | None
    """Unix time at which the request was sent."""
    receive_count: int
    """How often SQS has handed it out: to workers, and to looks like this one."""
    task: str | None
    request_id: str | None
    photo: Photo
    reason: str
    body: str
    document: Any
    """The decoded body: the task's headers and properties, with its arguments in `body`. None when it is no task."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Dead letters, oldest first."""

    letters: tuple[DeadLetter, ...]
    total: int
    """How many there are by SQS's count, which is approximate and includes those held by somebody else."""

    @classmethod
    def of(cls, letters: Sequence[DeadLetter]) -> Listing:
        """Just these."""
        return cls(letters=tuple(letters), total=len(letters))

    @property
    def complete(self) -> bool:
        return len(self.letters) >= self.total


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one letter."""

    message_id: str
    request_id: str | None
    done: bool
    detail: str


@dataclass(frozen=True)
class _Held:
    """A message as SQS handed it out."""

    raw: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.raw["MessageId"])

    @property
    def request_id(self) -> str | None:
        return _request_id(_decode(str(self.raw["Body"])))

    @property
    def receipt(self) -> str:
        return str(self.raw["ReceiptHandle"])

    @property
    def sent_s(self) -> float | None:
        """When the request was sent, by SQS's clock (Unix time)."""
        sent_ms = self.raw.get("Attributes", {}).get("SentTimestamp")
        return float(sent_ms) / 1000 if sent_ms else None


class DeadLetters:
    """The stack's dead letters. Every method raises BrokerUnavailable when SQS does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._storage = Storage(settings)
        try:
            self._sqs = broker.sqs_client(read_timeout=10)
        except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
            raise BrokerUnavailable(f"AWS cannot be asked: {error}") from error
        self._urls: dict[str, str] = {}
        self._sent: set[str] = set()  # ids of the messages that the command at work has sent again

    @property
    def queue_url(self) -> str:
        return self._url(self._settings.dead_letter_queue)

    def listing(self, limit: int = LIST_MOST) -> Listing:
        """Up to `limit` letters; looking changes nothing but SQS's count of how often each was handed out."""
        with self._hold(limit) as held:
            pass
        total = max(self.count(), len(held))
        return Listing(letters=tuple(sorted(self._read(held), key=lambda each: each.sent_s or 0.0)), total=total)

    def show(self, ids: Sequence[str]) -> Sequence[DeadLetter]:
        """The letters with these message or request ids, or with ids that begin so. Raises DeadLetterNotFound."""
        with self._hold(LOOK_MOST) as held:
            pass
        return self._read(_pick(held, ids))

    def count(self) -> int:
        """How many there are, those held by somebody included; approximate."""
        return self._count()[0]

    def _count(self) -> tuple[int, float]:
        """The same, and when SQS said so (Unix time, by its clock)."""
        answer = self._call(
            "get_queue_attributes",
            QueueUrl=self.queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )
        return sum(int(each) for each in answer["Attributes"].values()), answered_s(answer)

    def redrive(self, ids: Sequence[str] | None, *, force: bool = False) -> Iterator[Outcome]:
        """Send these (None: all) to the request queue anew, where they have all their tries again.

        All are those whose requests were sent before this began: others fail meanwhile, and one that fails at once is a
        dead letter again. One whose photo is gone, or that is no task, is refused unless `force`. Each is sent before
        it is deleted: a crash in between doubles it, and doing a request twice changes nothing. Raises
        DeadLetterNotFound, having done nothing, when one of the ids is not there.
        """
        return self._each(ids, lambda held: self._redrive(held, force=force))

    def purge(self, ids: Sequence[str] | None) -> Iterator[Outcome]:
        """Delete these (None: all, as of `redrive`) for good.

        Raises DeadLetterNotFound, having done nothing, as `redrive` does.
        """
        return self._each(ids, lambda held: self._delete(held, "purged"))

    def _each(self, ids: Sequence[str] | None, act: Callable[[Sequence[_Held]], list[Outcome]]) -> Iterator[Outcome]:
        """Act on the letters, a few at a time, and give the others back."""
        if ids is not None:
            with self._hold(LOOK_MOST) as held:
                chosen = _pick(held, ids)
                for start in range(0, len(chosen), AT_ONCE):
                    yield from act(chosen[start : start + AT_ONCE])
            return
        seen: set[str] = set()
        self._sent = set()
        # SQS's dates are whole seconds.
        until_s = self._count()[1] + 1

        def is_done(each: _Held) -> bool:
            return each.id in seen or each.id in self._sent or (each.sent_s or 0.0) > until_s

        while True:
            # In parts: what is held for long comes back in the middle.
            with self._hold(10 * BATCH, skip=is_done) as held:
                seen.update(each.id for each in held)
                for start in range(0, len(held), AT_ONCE):
                    yield from act(held[start : start + AT_ONCE])
            if not held:
                return

    @contextmanager
    def _hold(self, limit: int, *, skip: Callable[[_Held], bool] = lambda _: False) -> Iterator[list[_Held]]:
        """Up to `limit` messages that are not to `skip`, until the block ends; all are visible again then."""
        until_s = time.monotonic() + LOOK_S
        found: dict[str, _Held] = {}
        passed_over: dict[str, _Held] = {}
        try:
            while len(found) < limit and time.monotonic() < until_s:
                answer = self._call(
                    "receive_message",
                    QueueUrl=self.queue_url,
                    MaxNumberOfMessages=min(BATCH, limit - len(found)),
                    VisibilityTimeout=HOLD_S,
                    # A long poll asks all of SQS's servers: a short one asks a few, and misses messages.
                    WaitTimeSeconds=1,
                    MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
                    MessageAttributeNames=["All"],
                )
                fresh = [_Held(each) for each in answer.get("Messages", ())]
                if not fresh:
                    break
                for each in fresh:
                    (passed_over if skip(each) else found)[each.id] = each
            yield list(found.values())
        finally:
            self._release([*found.values(), *passed_over.values()])

    def _release(self, held: Sequence[_Held]) -> None:
        """Make them visible again. Those deleted meanwhile, and any that fail, are left to `HOLD_S`."""
        batches = [held[start : start + BATCH] for start in range(0, len(held), BATCH)]

        def release(batch: Sequence[_Held]) -> None:
            entries = [
                {"Id": str(n), "ReceiptHandle": each.receipt, "VisibilityTimeout": 0} for n, each in enumerate(batch)
            ]
            self._call("change_message_visibility_batch", QueueUrl=self.queue_url, Entries=entries)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(release, batches):
                pass

    def _redrive(self, held: Sequence[_Held], *, force: bool) -> list[Outcome]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            refusals = list(threads.map(lambda each: "" if force else _refusal(each), self._read(held)))
            todo = [each for each, refusal in zip(held, refusals, strict=True) if not refusal]
            failures = list(threads.map(self._send, todo))
        outcomes = [_outcome(each, refusal) for each, refusal in zip(held, refusals, strict=True) if refusal]
        outcomes += [_outcome(each, failure) for each, failure in zip(todo, failures, strict=True) if failure]
        sent = [each for each, failure in zip(todo, failures, strict=True) if not failure]
        return outcomes + self._delete(sent, "sent again")

    def _send(self, message: _Held) -> str:
        """Send it to the request queue; a sentence when that is impossible."""
        attributes = {
            name: {key: part for key, part in value.items() if not key.endswith("ListValues")}
            for name, value in message.raw.get("MessageAttributes", {}).items()
        }
        url = self._url(self._settings.request_queue)
        try:
            sent = self._call(
                "send_message", QueueUrl=url, MessageBody=message.raw["Body"], MessageAttributes=attributes
            )
            # It keeps this id when it becomes a dead letter.
            self._sent.add(str(sent["MessageId"]))
        except BrokerUnavailable as error:
            return f"stays: {error.detail}"
        return ""

    def _delete(self, held: Sequence[_Held], done: str) -> list[Outcome]:
        """Delete up to `BATCH` messages."""
        if not held:
            return []
        entries = [{"Id": str(n), "ReceiptHandle": each.receipt} for n, each in enumerate(held)]
        try:
            answer = self._call("delete_message_batch", QueueUrl=self.queue_url, Entries=entries)
            failed = {int(each["Id"]): str(each.get("Message", each["Code"])) for each in answer.get("Failed", ())}
        except BrokerUnavailable as error:
            failed = dict.fromkeys(range(len(held)), error.detail)
        return [
            Outcome(
                message_id=each.id,
                request_id=each.request_id,
                done=n not in failed,
                detail=f"{done}, but SQS did not delete it here: {failed[n]}" if n in failed else done,
            )
            for n, each in enumerate(held)
        ]

    def _read(self, held: Sequence[_Held]) -> Sequence[DeadLetter]:
        tries = self._tries() if held else 0
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(lambda each: self._letter(each, tries), held))

    def _letter(self, held: _Held, tries: int) -> DeadLetter:
        body = str(held.raw["Body"])
        document = _decode(body)
        task = str(document["headers"]["task"]) if document else None
        request_id = _request_id(document)
        attributes = held.raw.get("Attributes", {})
        unfit = refusal(body, tasks=TASKS)
        photo, reason = self._look_up(
            task, request_id, f"no worker takes it: {unfit}" if unfit else f"failed {tries} times"
        )
        return DeadLetter(
            message_id=held.id,
            sent_s=held.sent_s,
            receive_count=int(attributes.get("ApproximateReceiveCount", 0)),
            task=task,
            request_id=request_id,
            photo=photo,
            reason=reason,
            body=body,
            document=document,
        )

    def _look_up(self, task: str | None, request_id: str | None, failed: str) -> tuple[Photo, str]:
        """Whether the photo is there, and why the request is a dead letter as far as anybody knows.

        `failed` is what can be said without S3, which has why the last try failed unless it did not answer then.
        """
        if task not in (RECOGNIZE, ENROL) or request_id is None:
            return "none", failed
        try:
            if task == ENROL:
                return "there" if self._storage.list_incoming(request_id) else "gone", failed
            photo: Photo = "there" if self._storage.photo_exists(request_id) else "gone"
            result = self._storage.get_result(request_id)
        except FaceappError as error:
            return "unknown", f"S3 does not say: {error.detail}"
        if result is None:
            return photo, failed
        if result.failure:
            return photo, f"{result.failure.code}: {result.failure.detail}"
        return photo, f"its result is there after all: {result.answer}"

    def _tries(self) -> int:
        """How often the request queue hands a message out before it is a dead letter."""
        answer = self._call(
            "get_queue_attributes",
            QueueUrl=self._url(self._settings.request_queue),
            AttributeNames=["RedrivePolicy"],
        )
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
        return int(policy.get("maxReceiveCount", 0))

    def _url(self, queue: str) -> str:
        if queue not in self._urls:
            self._urls[queue] = str(self._call("get_queue_url", QueueName=queue)["QueueUrl"])
        return self._urls[queue]

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return getattr(self._sqs, operation)(**arguments)
        except self._sqs.exceptions.QueueDoesNotExist:
            name = arguments.get("QueueName") or str(arguments.get("QueueUrl")).rpartition("/")[2]
            raise BrokerUnavailable(
                f"The queue {name} does not exist: deploy the stack first, or set FACEAPP_PREFIX to the stack's name."
            ) from None
        except (BotoCoreError, ClientError) as error:
            raise BrokerUnavailable(f"SQS does not do {operation}: {error}") from error


def _pick(held: Sequence[_Held], ids: Iterable[str]) -> list[_Held]:
    """Those that the ids name, each once."""
    names = [(each, {each.id, each.request_id or ""}) for each in held]
    found: dict[str, _Held] = {}
    for id in ids:
        if len(id) < SHORTEST_ID:
            raise DeadLetterNotFound(f"{id!r} is too short for an id: give {SHORTEST_ID} characters of it or more.")
        fitting = [each for each, of in names if id in of] or [
            each for each, of in names if any(name.startswith(id) for name in of)
        ]
        if len(fitting) > 1:
            raise DeadLetterNotFound(f"{len(fitting)} dead letters begin with {id!r}: give more of the (message) id.")
        if not fitting:
            raise DeadLetterNotFound(
                f"There is no dead letter {id!r} (or another command holds it just now, for {HOLD_S} s at most)."
            )
        found[fitting[0].id] = fitting[0]
    return list(found.values())


def _refusal(letter: DeadLetter) -> str:
    """Why sending it again would be of no use; empty when it might."""
    if letter.document is None:
        return "refused: it is no task, so no worker can do it (--force sends it)"
    if letter.photo == "gone":
        return "refused: its photo is gone, so it would fail again (--force sends it)"
    if letter.photo == "unknown":
        return f"refused: {letter.reason} (--force sends it)"
    return ""


def _outcome(held: _Held, detail: str) -> Outcome:
    return Outcome(message_id=held.id, request_id=held.request_id, done=False, detail=detail)


def _decode(body: str) -> dict[str, Any] | None:
    """The Celery task in a message, with its arguments decoded where they can be; None when it is none."""
    document = _json(body)
    if document is None:
        document = _json(_base64(body))
    if not isinstance(document, dict):
        return None
    headers = document.get("headers")
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return None
    arguments = document.get("body")
    decoded = next((each for each in (_json(arguments), _json(_base64(arguments))) if each is not None), arguments)
    return {**document, "body": decoded}


def _request_id(document: dict[str, Any] | None) -> str | None:
    """What the product's tasks are about; of any other task, its id."""
    if document is None:
        return None
    headers, body = document["headers"], document["body"]
    if headers["task"] in (RECOGNIZE, ENROL):
        try:
            argument = body[0][0]
        except (IndexError, KeyError, TypeError):
            return None
        return argument if isinstance(argument, str) and re.fullmatch("[0-9a-f]{32}", argument) else None
    return str(headers["id"]) if headers.get("id") else None


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _base64(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None
