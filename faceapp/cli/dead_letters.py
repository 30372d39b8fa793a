"""Requests that failed too often."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery_sqs.commands.dead_letters import Desk, group
from celery_sqs.texts import counted
from faceapp.cli.common import which_aws
from faceapp.config import settings

if TYPE_CHECKING:
    from celery_sqs.queues.letters import Listing
    from faceapp.operations.dead_letters import DeadLetter


class Requests(Desk):
    """The stack's dead letters, with their photos."""

    noun = "request"
    lost = "nobody can send these requests again, and they are never answered."

    def document(self, found: Any) -> dict[str, Any]:
        return {"aws": self.where, **_renamed(super().document(found))}

    def show_all(self, found: Listing[Any]) -> None:
        from faceapp.operations import tables

        tables.console().print(tables.dead_letters(found, aws=self.where))

    def show(self, found: DeadLetter) -> None:  # type: ignore[override] # this desk's letters are of this kind
        from faceapp.operations import tables

        tables.console().print(tables.dead_letter(found))

    def loss(self, found: Listing[Any]) -> str:
        photos = sum(each.photo == "there" for each in found.letters)
        kept = f" {counted(photos, 'photo')} of theirs stay in S3 until they expire." if photos else ""
        return super().loss(found) + kept


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    """A request's id by its own name."""
    if "letters" in document:
        return {**document, "letters": [_renamed(each) for each in document["letters"]]}
    return {"request_id" if name == "task_id" else name: value for name, value in document.items()}


def _of_stack(command: Callable[..., None]) -> Callable[..., None]:
    @which_aws
    @wraps(command)
    def opened(*arguments: Any, aws: str, **options: Any) -> None:
        from faceapp.operations.dead_letters import DeadLetters

        command(*arguments, desk=Requests(DeadLetters(settings()), aws), **options)

    return opened


dead_letters = group(_of_stack, retry="redrive", drop="purge", program="faceapp dead-letters")
