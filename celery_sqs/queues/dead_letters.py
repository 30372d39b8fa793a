"""Messages that were delivered too often: which there are, why, and sending them again or dropping them.

SQS shows a message only by handing it out, so a look holds the dead letters for as long as it takes and gives them back
at once. What holds them ends by itself after `HOLD_S`, so a command that is killed loses nothing. Of each group of a
FIFO queue SQS hands out ten at a time, so a look sees no more.

Which queues have dead letters, and where those go, is what the work queues' redrive policies say.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Generic

from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery, states
from celery.backends.base import DisabledBackend

from celery_sqs import options as sqs_options
from celery_sqs.clocks import answered_s
from celery_sqs.errors import BrokerUnavailable, DeadLetterNotFound
from celery_sqs.options import Options
from celery_sqs.queues.counts import ATTRIBUTES
from celery_sqs.queues.letters import (
    DeadLetter,
    DeadLetterQueue,
    L,
    Listing,
    Outcome,
    Source,
    dead_letter_queues,
    decoded,
    task_id_of,
)
from celery_sqs.transport import priorities
from celery_sqs.transport.offload import OBJECT, SENT, Offload, Unreadable, object_in

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
NEVER_USED = "nothing was sent to it yet, or it has another name"


@dataclass(frozen=True)
class _Held:
    """A message as SQS handed it out; once it was read, `raw` has the text that S3 keeps of a large one."""

    raw: dict[str, Any]
    queue: DeadLetterQueue

    @property
    def id(self) -> str:
        return str(self.raw["MessageId"])

    @property
    def body(self) -> str:
        return str(self.raw["Body"])

    @property
    def sent_body(self) -> str:
        """As SQS has it."""
        return str(self.raw.get(SENT, self.raw["Body"]))

    @property
    def receipt(self) -> str:
        return str(self.raw["ReceiptHandle"])

    @property
    def attributes(self) -> Mapping[str, str]:
        """SQS's own."""
        found: Mapping[str, str] = self.raw.get("Attributes", {})
        return found

    @property
    def sent_s(self) -> float | None:
        """When the message was sent, by SQS's clock (Unix time)."""
        sent_ms = self.attributes.get("SentTimestamp")
        return float(sent_ms) / 1000 if sent_ms else None


def futile(letter: DeadLetter) -> str:
    """Why sending a letter again would be of no use; empty when it might."""
    if letter.document is None:
        return "it is no task, so no worker can do it"
    return letter.lost


class DeadLetters(Generic[L]):
    """An application's dead letters. Every method raises BrokerUnavailable when SQS does not answer, when a queue that
    is needed is not there, or when none has dead letters.

    `describe` adds what the application knows of a letter, `refuse` says why not to send one again (`futile`), and
    `id_of` by what else than the message's id it is found. `missing` is what to do where a queue is not there.
    """

    def __init__(
        self,
        options: Options,
        *,
        describe: Callable[[DeadLetter], L],
        refuse: Callable[[L], str] = futile,
        id_of: Callable[[dict[str, Any] | None], str | None] = task_id_of,
        missing: str = NEVER_USED,
    ) -> None:
        self._options = options
        self._describe, self._refuse, self._id_of, self._missing = describe, refuse, id_of, missing
        self._offload = Offload(
            aws=options.aws,
            bucket=options.messages_bucket or options.results_bucket,
            prefix=options.messages_prefix,
            limit_bytes=options.largest_message_bytes,
        )
        try:
            self._sqs = options.aws.client("sqs", read_timeout=10)
        except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
            raise BrokerUnavailable(f"AWS cannot be asked: {error}") from error
        self._sent: set[str] = set()  # ids of the messages that the command at work has sent again

    @cached_property
    def queues(self) -> tuple[DeadLetterQueue, ...]:
        """At least one."""
        try:
            found = dead_letter_queues(self._options, self._sqs)
        except (BotoCoreError, ClientError) as error:
            raise BrokerUnavailable(f"SQS does not say where dead letters go: {error}") from error
        if found:
            return found
        for name in self._options.queue_names:
            self._call("get_queue_url", QueueName=name)
        names = ", ".join(self._options.queue_names)
        raise BrokerUnavailable(f"No queue has dead letters: {names} have no redrive policy.")

    def listing(self, limit: int = LIST_MOST) -> Listing[L]:
        """Up to `limit` letters; looking changes nothing but SQS's count of how often each was handed out."""
        with self._hold(limit) as held:
            pass
        total = max(self.count(), len(held))
        return Listing(letters=tuple(sorted(self._read(held), key=lambda each: each.sent_s or 0.0)), total=total)

    def show(self, ids: Sequence[str]) -> Sequence[L]:
        """The letters with these message or task ids, or with ids that begin so. Raises DeadLetterNotFound."""
        with self._hold(LOOK_MOST) as held:
            pass
        return self._read(self._pick(held, ids))

    def count(self) -> int:
        """How many there are, those held by somebody included; approximate."""
        return sum(
            int(count)
            for each in self.queues
            for count in self._attributes(each, list(ATTRIBUTES.values()))["Attributes"].values()
        )

    def retry(self, ids: Sequence[str] | None, *, force: bool = False) -> Iterator[Outcome]:
        """Send these (None: all) to their work queues again, where they have all their tries.

        All are those that were sent before this began: others fail meanwhile, and one that fails at once is a dead
        letter again. One that is of no use is refused unless `force`. Each is sent before it is deleted: a crash in
        between doubles it. Raises DeadLetterNotFound, having done nothing, when one of the ids is not there.
        """
        return self._each(ids, lambda held: self._retry(held, force=force))

    def drop(self, ids: Sequence[str] | None) -> Iterator[Outcome]:
        """Delete these (None: all, as of `retry`) for good, with what S3 keeps of large ones.

        Raises DeadLetterNotFound, having done nothing, as `retry` does.
        """
        return self._each(ids, self._drop)

    def _each(self, ids: Sequence[str] | None, act: Callable[[Sequence[_Held]], list[Outcome]]) -> Iterator[Outcome]:
        """Act on the letters, a few at a time, and give the others back."""
        if ids is not None:
            with self._hold(LOOK_MOST) as held:
                chosen = self._pick(held, ids)
                for start in range(0, len(chosen), AT_ONCE):
                    yield from act(chosen[start : start + AT_ONCE])
            return
        seen: set[str] = set()
        self._sent = set()
        # SQS's dates are whole seconds.
        until_s = self._now_s() + 1

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
            for queue in self.queues:
                while len(found) < limit and time.monotonic() < until_s:
                    fresh = self._receive(queue, min(BATCH, limit - len(found)))
                    if not fresh:
                        break
                    for each in fresh:
                        (passed_over if skip(each) else found)[each.id] = each
            yield list(found.values())
        finally:
            self._release([*found.values(), *passed_over.values()])

    def _receive(self, queue: DeadLetterQueue, most: int) -> list[_Held]:
        answer = self._call(
            "receive_message",
            QueueUrl=queue.url,
            MaxNumberOfMessages=most,
            VisibilityTimeout=HOLD_S,
            # A long poll asks all of SQS's servers: a short one asks a few, and misses messages.
            WaitTimeSeconds=1,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [_Held(each, queue) for each in answer.get("Messages", ())]

    def _release(self, held: Sequence[_Held]) -> None:
        """Make them visible again. Those deleted meanwhile, and any that fail, are left to `HOLD_S`."""

        def release(batch: tuple[str, Sequence[_Held]]) -> None:
            url, messages = batch
            entries = [
                {"Id": str(n), "ReceiptHandle": each.receipt, "VisibilityTimeout": 0} for n, each in enumerate(messages)
            ]
            self._call("change_message_visibility_batch", QueueUrl=url, Entries=entries)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(release, _batches(held)):
                pass

    def _retry(self, held: Sequence[_Held], *, force: bool) -> list[Outcome]:
        letters = self._read(held)
        futile = ["" if force else self._refuse(each) for each in letters]
        refusals = [f"refused: {why} (--force sends it)" if why else "" for why in futile]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            details = list(
                threads.map(
                    lambda each, letter, refusal: refusal or self._send(each, letter.queue),
                    *(held, letters, refusals),
                )
            )
        stay = [self._outcome(each, detail) for each, detail in zip(held, details, strict=True) if detail]
        sent = [each for each, detail in zip(held, details, strict=True) if not detail]
        return stay + self._delete(sent, "sent again")

    def _send(self, message: _Held, queue: str) -> str:
        """Send it to the work queue; a sentence when that is impossible."""
        source = next((each for each in message.queue.sources if each.name == queue), None)
        if source is None:
            names = ", ".join(each.name for each in message.queue.sources)
            return f"stays: nothing says from which of the queues it came: {names}"
        attributes = {
            name: {key: part for key, part in value.items() if not key.endswith("ListValues")}
            for name, value in message.raw.get("MessageAttributes", {}).items()
        }
        group = message.attributes.get("MessageGroupId")
        extra = {"MessageGroupId": group} if group else {}
        if queue.endswith(".fifo"):
            # Its own would make SQS drop it within five minutes of the first.
            extra["MessageDeduplicationId"] = uuid.uuid4().hex
        try:
            sent = self._call(
                "send_message",
                QueueUrl=source.url,
                MessageBody=message.sent_body,
                MessageAttributes=attributes,
                **extra,
            )
            # It keeps this id when it becomes a dead letter.
            self._sent.add(str(sent["MessageId"]))
        except BrokerUnavailable as error:
            return f"stays: {error}"
        return ""

    def _drop(self, held: Sequence[_Held]) -> list[Outcome]:
        outcomes = self._delete(held, "dropped")
        gone = {each.message_id for each in outcomes if each.done}
        if self._offload.bucket:
            self._offload.delete(name for each in held if each.id in gone and (name := _object(each)))
        return outcomes

    def _delete(self, held: Sequence[_Held], done: str) -> list[Outcome]:
        outcomes = []
        for url, batch in _batches(held):
            entries = [{"Id": str(n), "ReceiptHandle": each.receipt} for n, each in enumerate(batch)]
            try:
                answer = self._call("delete_message_batch", QueueUrl=url, Entries=entries)
                failed = {int(each["Id"]): str(each.get("Message", each["Code"])) for each in answer.get("Failed", ())}
            except BrokerUnavailable as error:
                failed = dict.fromkeys(range(len(batch)), str(error))
            for n, each in enumerate(batch):
                detail = f"{done}, but SQS did not delete it here: {failed[n]}" if n in failed else done
                outcomes.append(self._outcome(each, detail, done=n not in failed))
        return outcomes

    def _outcome(self, held: _Held, detail: str, *, done: bool = False) -> Outcome:
        return Outcome(message_id=held.id, task_id=self._id_of(decoded(held.body)), done=done, detail=detail)

    def _read(self, held: Sequence[_Held]) -> Sequence[L]:
        troubles: list[Exception | None] = []
        for start in range(0, len(held), AT_ONCE):
            troubles += self._offload.read([each.raw for each in held[start : start + AT_ONCE]])
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(lambda each, trouble: self._describe(self._letter(each, trouble)), held, troubles))

    def _letter(self, held: _Held, trouble: Exception | None) -> DeadLetter:
        document = decoded(held.body)
        source = self._source(held, document)
        tries = source.tries if source else min(each.tries for each in held.queue.sources)
        unfit = "" if trouble else self._options.hooks.refuse(held.body) or ("" if document else "it is no task")
        return DeadLetter(
            message_id=held.id,
            queue=source.name if source else "",
            sent_s=held.sent_s,
            receive_count=int(held.attributes.get("ApproximateReceiveCount", 0)),
            task=str(document["headers"]["task"]) if document else None,
            task_id=self._id_of(document),
            reason=str(trouble or "") or (f"no worker takes it: {unfit}" if unfit else f"failed {tries} times"),
            lost=str(trouble or ""),
            body=held.body,
            document=document,
        )

    def _source(self, held: _Held, document: dict[str, Any] | None) -> Source | None:
        """The work queue that it came from: as SQS says, as is clear, or as Celery wrote into the message."""
        sources = held.queue.sources
        arn = held.attributes.get("DeadLetterQueueSourceArn")
        if len(sources) == 1:
            return sources[0]
        named = self._named_by(document) if arn is None else ""
        return next((each for each in sources if each.arn == arn or each.name == named), None)

    def _named_by(self, document: dict[str, Any] | None) -> str:
        properties = document.get("properties") if document else None
        if not isinstance(properties, dict) or not isinstance(properties.get("delivery_info"), dict):
            return ""
        priority = properties.get("priority")
        queue = priorities.queue_for(
            str(properties["delivery_info"].get("routing_key")),
            priority if isinstance(priority, int) else 0,
            self._options.priority_steps,
        )
        return self._options.queue_name_prefix + queue

    def _pick(self, held: Sequence[_Held], ids: Iterable[str]) -> list[_Held]:
        """Those that the ids name, each once."""
        names = [(each, {each.id, self._id_of(decoded(each.body)) or ""}) for each in held]
        found: dict[str, _Held] = {}
        for id in ids:
            if len(id) < SHORTEST_ID:
                raise DeadLetterNotFound(f"{id!r} is too short for an id: give {SHORTEST_ID} characters of it or more.")
            fitting = [each for each, of in names if id in of] or [
                each for each, of in names if any(name.startswith(id) for name in of)
            ]
            if len(fitting) > 1:
                raise DeadLetterNotFound(
                    f"{len(fitting)} dead letters begin with {id!r}: give more of the (message) id."
                )
            if not fitting:
                raise DeadLetterNotFound(
                    f"There is no dead letter {id!r} (or another command holds it just now, for {HOLD_S} s at most)."
                )
            found[fitting[0].id] = fitting[0]
        return list(found.values())

    def _now_s(self) -> float:
        """What time it is by SQS's clock (Unix time)."""
        return answered_s(self._attributes(self.queues[0], ["QueueArn"]))

    def _attributes(self, queue: DeadLetterQueue, names: Sequence[str]) -> Any:
        return self._call("get_queue_attributes", QueueUrl=queue.url, AttributeNames=names)

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return getattr(self._sqs, operation)(**arguments)
        except self._sqs.exceptions.QueueDoesNotExist:
            name = arguments.get("QueueName") or str(arguments.get("QueueUrl")).rpartition("/")[2]
            raise BrokerUnavailable(f"The queue {name} does not exist: {self._missing}.") from None
        except (BotoCoreError, ClientError) as error:
            raise BrokerUnavailable(f"SQS does not do {operation}: {error}") from error


def of(app: Celery) -> DeadLetters[DeadLetter]:
    """The dead letters of `app`, with what its results say of them."""
    return DeadLetters(sqs_options.of(app), describe=partial(_with_result, app))


def _with_result(app: Celery, letter: DeadLetter) -> DeadLetter:
    told = _told(app, letter.task_id) if letter.task_id and letter.document and not letter.lost else ""
    return replace(letter, reason=told) if told else letter


def _told(app: Celery, task_id: str) -> str:
    """What is stored of a task that has ended; empty where nothing is."""
    if isinstance(app.backend, DisabledBackend):
        return ""
    result = app.AsyncResult(task_id)
    try:
        state, came = result.state, result.result
    except Exception as error:  # whatever the backend raises: it may be another one than ours
        return f"its result cannot be had: {error}"
    if state == states.SUCCESS:
        return "its result is there after all"
    return f"{type(came).__name__}: {came}" if state in states.EXCEPTION_STATES and came is not None else ""


def _batches(held: Sequence[_Held]) -> list[tuple[str, Sequence[_Held]]]:
    """Up to `BATCH` messages of one queue, and its URL."""
    by_url: dict[str, list[_Held]] = {}
    for each in held:
        by_url.setdefault(each.queue.url, []).append(each)
    return [
        (url, messages[start : start + BATCH])
        for url, messages in by_url.items()
        for start in range(0, len(messages), BATCH)
    ]


def _object(held: _Held) -> str | None:
    """The name of the object that has its text."""
    try:
        return held.raw.get(OBJECT) or object_in(held.body)
    except Unreadable:
        return None
