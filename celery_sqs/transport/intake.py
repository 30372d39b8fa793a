"""What becomes of received messages before Celery sees them: read, refused, sent on, or kept out of others' sight."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from kombu.transport import SQS

from celery_sqs.transport import delay, offload
from celery_sqs.transport.deletions import Deletions, Done
from celery_sqs.transport.http import CLOCK
from celery_sqs.transport.messages import TRIES, decoded
from celery_sqs.transport.visibility import Keeper

logger = logging.getLogger(__name__)

FACTS_FOR_S = 300.0
"""A queue's attributes are believed for so long: a redrive policy may be given to it while workers run."""
REFUSED_S = 300
"""A refused message of a queue without a redrive policy is out of sight for so long."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a work queue is like: how often it delivers a message (0: for ever), for how long it hides one (s), and
    whether it has said so itself."""

    deliveries: int
    visibility_s: int
    known: bool


class Intake(SQS.Channel):
    """The part of `Channel` that takes messages in."""

    _deletions: Deletions
    _keeper: Keeper

    def _facts_of(self, url: str) -> Facts:
        """What the queue at `url` is like, asked now and then."""
        if (told := self.transport_options.get("max_deliveries")) is not None:
            return Facts(deliveries=told, visibility_s=self.visibility_timeout, known=True)
        known: tuple[Facts, float] | None = self._redrive_policies.get(url)
        if known and time.monotonic() - known[1] < FACTS_FOR_S:
            return known[0]
        names = ["RedrivePolicy", "VisibilityTimeout"]
        try:
            answer = self._quick(url).get_queue_attributes(QueueUrl=url, AttributeNames=names).get("Attributes", {})
            policy = json.loads(answer.get("RedrivePolicy", "{}"))
            facts = Facts(
                deliveries=int(policy.get("maxReceiveCount", 0)), visibility_s=int(answer[names[1]]), known=True
            )
        except Exception as error:  # whatever it was, the messages that have come are to be done
            logger.warning("cannot see what the queue %s is like: %r", url, error)
            facts = known[0] if known else Facts(deliveries=0, visibility_s=self.visibility_timeout, known=False)
        self._redrive_policies[url] = facts, time.monotonic()
        return facts

    def _has_redrive_policy(self, queue: str | None, queue_url: str) -> bool:
        # Where that cannot be seen: a message that was deleted cannot be had back.
        facts = self._facts_of(queue_url)
        return facts.deliveries > 0 or not facts.known

    def _take_in(self, queue: str, url: str, messages: list[Any]) -> list[Any]:
        """Those of a work queue's messages that are tasks of ours and due, kept out of others' sight from now on."""
        due = self._later(queue, url, self._acceptable(url, messages))
        self._note(url, due)
        return due

    def _whole(self, url: str, messages: list[Any]) -> list[Any]:
        """The messages with their text, where that is in S3, without those that have none."""
        troubles = self._offload.read(messages)
        for each, trouble in zip(messages, troubles, strict=True):
            if isinstance(trouble, offload.Unreadable):
                self._leave(url, each, trouble)
            elif trouble:
                logger.warning("a message's text cannot be read, and comes again: %s", trouble)
        return [each for each, trouble in zip(messages, troubles, strict=True) if not trouble]

    def _leave(self, url: str, message: Any, reason: offload.Unreadable) -> None:
        """A message whose text cannot be read goes to the dead letters. On a queue without them it is deleted when its
        object is gone, as kombu deletes what is rejected."""
        logger.error("the message %s (%s) cannot be done: %s", message.get("MessageId"), message["Body"][:500], reason)
        redrives = self._has_redrive_policy(None, url)
        if isinstance(reason, offload.Gone) and not redrives:
            self._deletions.add(Done(url, message["ReceiptHandle"]))
        else:
            self._hand_back(url, [message], after_s=0 if redrives else REFUSED_S)

    def _acceptable(self, url: str, messages: list[Any]) -> list[Any]:
        """The messages that a worker can do; the others go back at once, and are dead letters two deliveries later."""
        reasons = [self._reason(each) for each in messages]
        for each, reason in zip(messages, reasons, strict=True):
            if reason:
                logger.warning("the message %s is left for the dead letters: %s", each.get("MessageId"), reason)
        refused = [each for each, reason in zip(messages, reasons, strict=True) if reason]
        if refused:
            # Without a redrive policy it comes for ever: not at each poll, at least.
            self._hand_back(url, refused, after_s=0 if self._has_redrive_policy(None, url) else REFUSED_S)
        return [each for each, reason in zip(messages, reasons, strict=True) if not reason]

    def _reason(self, message: Any) -> str:
        """Why a message is not taken; empty when it is."""
        refuse = self.transport_options.get("refuse")
        try:
            return refuse(str(message["Body"])) if refuse else ""
        except Exception as error:  # what is raised here would end the queue's polling
            logger.exception("the application's gate failed")
            return f"the gate failed: {error!r}"

    def _later(self, queue: str, url: str, messages: list[Any]) -> list[Any]:
        """The messages whose time has come, or will in a moment; the others are sent on, or hidden until then."""
        due = []
        for each in messages:
            left_s = self._left_s(each)
            # A FIFO queue delays no single message: Celery keeps it, out of others' sight.
            if left_s <= delay.SOON_S or url.endswith(".fifo"):
                due.append(each)
                continue
            try:
                self._send_on(url, each, delay.delay_s(left_s))
            except (BotoCoreError, ClientError) as error:
                logger.warning("a message of %s is not sent on, and comes again: %s", queue, error)
        return due

    def _left_s(self, message: Any) -> float:
        try:
            headers = decoded(message["Body"]).get("headers")
        except (ValueError, RecursionError):
            return 0.0
        now_s = message[CLOCK] + time.monotonic() if CLOCK in message else time.time()
        return delay.left_s(headers, now_s)

    def _send_on(self, url: str, message: Any, seconds: int) -> None:
        """Send a message once more, to be delivered in `seconds`, then delete this one: killed between the two, a
        worker has sent it twice, and never lost it."""
        group = decoded(message["Body"]).get("properties", {}).get("MessageGroupId")
        groups = {"MessageGroupId": group} if group else {}
        body = message.get(offload.SENT, message["Body"])
        self._quick(url).send_message(QueueUrl=url, MessageBody=body, DelaySeconds=seconds, **groups)
        # Not its object, which the new message names.
        self._deletions.add(Done(url, message["ReceiptHandle"]))

    def _note(self, url: str, messages: list[Any]) -> None:
        """Note in messages that are taken in how often they are tried, and keep them out of sight from now on."""
        if not messages:
            return
        facts = self._facts_of(url)
        for each in messages:
            each[TRIES] = facts.deliveries
            if self.transport_options.get("extend_visibility", True):
                self._keeper.hold(each["ReceiptHandle"], url, facts.visibility_s)

    def _hand_back(self, url: str, messages: list[Any], *, after_s: int = 0) -> None:
        """Make messages visible again; those that fail are so when their visibility timeout is over."""
        entries = [
            {"Id": str(n), "ReceiptHandle": each["ReceiptHandle"], "VisibilityTimeout": after_s}
            for n, each in enumerate(messages)
        ]
        try:
            if entries:
                self._quick(url).change_message_visibility_batch(QueueUrl=url, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            logger.warning("%d messages stay out of sight for their whole visibility timeout: %s", len(entries), error)
