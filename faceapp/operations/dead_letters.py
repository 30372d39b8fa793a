"""Requests that failed too often: `celery_sqs.queues.dead_letters`, with the photos that they are about."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from celery_sqs import Hooks
from celery_sqs.queues import dead_letters, letters
from celery_sqs.queues.letters import task_id_of
from faceapp import broker
from faceapp.broker.messages import ENROL, ERASE, FORGET, RECOGNIZE, refusal
from faceapp.config import Settings
from faceapp.errors import FaceappError
from faceapp.operations.queues import NOT_DEPLOYED
from faceapp.storage import Storage

TASKS = (RECOGNIZE, ENROL, FORGET, ERASE)

Photo = Literal["there", "gone", "none", "unknown"]
"""Whether what the task is about is still in S3; `none` for a task without a photo, `unknown` when S3 does not say."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter(letters.DeadLetter):
    """A request that failed too often."""

    photo: Photo

    @property
    def request_id(self) -> str | None:
        """What the product's tasks are about; of any other task, its id."""
        return self.task_id


class DeadLetters(dead_letters.DeadLetters[DeadLetter]):
    """The stack's dead letters."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            replace(broker.options(settings), hooks=Hooks(refuse=partial(refusal, tasks=TASKS))),
            describe=partial(_with_photo, Storage(settings)),
            refuse=_futile,
            id_of=request_id_of,
            missing=NOT_DEPLOYED,
        )


def request_id_of(document: dict[str, Any] | None) -> str | None:
    """What one of the product's tasks is about; of any other task, its id."""
    if document is None or document["headers"]["task"] not in (RECOGNIZE, ENROL):
        return task_id_of(document)
    try:
        argument = document["body"][0][0]
    except (IndexError, KeyError, TypeError):
        return None
    return argument if isinstance(argument, str) and re.fullmatch("[0-9a-f]{32}", argument) else None


def _with_photo(storage: Storage, letter: letters.DeadLetter) -> DeadLetter:
    photo, reason = _look_up(storage, letter.task, letter.task_id, letter.reason)
    known = {each.name: getattr(letter, each.name) for each in fields(letter)}
    return DeadLetter(**{**known, "reason": reason}, photo=photo)


def _look_up(storage: Storage, task: str | None, request_id: str | None, failed: str) -> tuple[Photo, str]:
    """Whether the photo is there, and why the request is a dead letter as far as anybody knows.

    `failed` is what can be said without S3, which has why the last try failed unless it did not answer then.
    """
    if task not in (RECOGNIZE, ENROL) or request_id is None:
        return "none", failed
    try:
        if task == ENROL:
            return "there" if storage.list_incoming(request_id) else "gone", failed
        photo: Photo = "there" if storage.photo_exists(request_id) else "gone"
        result = storage.get_result(request_id)
    except FaceappError as error:
        return "unknown", f"S3 does not say: {error.detail}"
    if result is None:
        return photo, failed
    if result.failure:
        return photo, f"{result.failure.code}: {result.failure.detail}"
    return photo, f"its result is there after all: {result.answer}"


def _futile(letter: DeadLetter) -> str:
    if letter.photo == "gone":
        return "its photo is gone, so it would fail again"
    return letter.reason if letter.photo == "unknown" else dead_letters.futile(letter)
