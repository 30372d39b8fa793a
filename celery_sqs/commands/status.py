"""An application at a glance: the command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from celery_sqs.commands.common import with_app
from celery_sqs.texts import age, counted, in_a_line, indented, table, to_json

if TYPE_CHECKING:
    from celery_sqs.queues.counts import Queue
    from celery_sqs.status import Part, Scaler, Status, Worker

WATCH_S = 2.0


def watch(look: Callable[[], bool], *, again: bool) -> None:
    """Look once, or every two seconds until Ctrl-C; the process's exit status is 1 if the last look was not well."""
    healthy = look()
    with suppress(KeyboardInterrupt):
        while again:
            time.sleep(WATCH_S)
            healthy = look()
    if not healthy:
        sys.exit(1)


@click.command()
@with_app
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--watch", "again", is_flag=True, help="Ask again every two seconds, until Ctrl-C.")
def status(app: Any, as_json: bool, again: bool) -> None:
    """Show queues, workers and the scaler.

    A part that does not answer is a line that says so; the others are shown all the same.

    The exit status is 0 when all is well. It is 1 when SQS or the workers cannot be asked, when the scaler is in
    trouble, when dead letters wait, and when tasks wait and there is neither a worker nor a scaler. No worker at all
    is well, and so is a scaler that cannot be reached from here.
    """
    from celery_sqs.status import ask

    def show() -> bool:
        found = ask(app)
        if as_json:
            click.echo(to_json(found.to_dict()))
        else:
            if again:
                click.clear()
            for line in _lines(found):
                click.echo(line)
        return found.healthy

    watch(show, again=again)


def _lines(found: Status) -> Iterator[str]:
    yield f"{found.prefix or 'no prefix'}, {time.strftime('%H:%M:%S', time.localtime(found.time_s))}"
    yield from _part("Queues", found.queues, _queues)
    yield from _part("Workers", found.workers, _workers)
    yield from _part("Scaler", found.scaler, _scaler)
    yield ""
    yield from [f"! {in_a_line(each)}" for each in found.problems] or ["All is well."]


def _part(title: str, part: Part[Any], lines: Callable[[Any], Iterator[str]]) -> Iterator[str]:
    yield from ("", title)
    yield from indented([in_a_line(part.trouble)] if part.value is None else lines(part.value))


def _queues(queues: tuple[Queue, ...]) -> Iterator[str]:
    if not queues:
        return iter(["none: nothing has been sent yet"])
    rows = [(each.kind, each.name, str(each.visible), str(each.in_flight), str(each.delayed)) for each in queues]
    counts = ("visible", "in flight", "delayed")
    return table(("", "queue", *counts), rows, numbers=counts)


def _workers(workers: tuple[Worker, ...]) -> Iterator[str]:
    if not workers:
        return iter(["none answers"])
    rows = [
        (
            in_a_line(each.name),
            str(each.processes),
            "?" if each.active is None else str(each.active),
            age(each.uptime_s),
        )
        for each in workers
    ]
    numbers = ("processes", "at work", "up for")
    return table(("name", *numbers), rows, numbers=numbers)


def _scaler(scaler: Scaler) -> Iterator[str]:
    yield in_a_line(told_by(scaler))


def told_by(scaler: Scaler) -> str:
    """What a scaler says, in a line."""
    role = "leads" if scaler.leader else "waits: another one leads"
    return f"{role}; wants {counted(scaler.wanted, 'instance')}: {scaler.reason}"
