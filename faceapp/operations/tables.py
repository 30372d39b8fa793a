"""Status and dead letters as text for a terminal of 80 columns or a pipe, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from celery_sqs.commands.dead_letters import beyond, facts, text_of
from celery_sqs.commands.status import told_by
from celery_sqs.queues.counts import Queue
from celery_sqs.queues.letters import Listing
from celery_sqs.status import Part, Scaler, Worker
from celery_sqs.texts import SHORT_ID, age, counted, printable
from faceapp.operations.dead_letters import DeadLetter
from faceapp.operations.status import Instance, Status

PIPE_COLUMNS = 80
QUEUES_SHOWN = 3
"""More response queues than these (one a process that asks) are shown as their sum."""


def console(*, error: bool = False) -> Console:
    """Standard output; without colours, and 80 columns wide, where it is no terminal."""
    out = Console(highlight=False, stderr=error)
    return out if out.is_terminal else Console(highlight=False, stderr=error, width=PIPE_COLUMNS, no_color=True)


def status(found: Status) -> RenderableType:
    """All parts, and at the end what somebody should look at."""
    at = time.strftime("%H:%M:%S", time.localtime(found.time_s))
    parts: list[RenderableType] = [
        Text(f"{found.prefix} on {found.aws}, {at}"),
        _part("Queues", found.queues, _queues),
        _part("Instances", found.instances, _instances),
        _part("Workers", found.workers, _workers),
        _part("Scaler", found.scaler, _scaler),
        _part("People", found.people, lambda people: Text(f"  {people} enrolled")),
        Text(),
    ]
    parts += [Text(f"! {each}", style="yellow") for each in found.problems] or [Text("All is well.", style="green")]
    return Group(*parts)


def numbers(header: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """What was measured: a row's name, and its values set flush right."""
    table = _table(*header, numbers=header[1:])
    for each in rows:
        _row(table, *each)
    return table


def keys(found: Sequence[Mapping[str, Any]], *, aws: str) -> RenderableType:
    """A line for each API key, as the command shows them; times are cut to the minute."""
    if not found:
        return Text(f"No API keys ({aws}).")
    table = _table("id", "name", "role", "created", "expires", "rotated: old one until")
    for each in found:
        times = [(each[name] or "-")[:16].replace("T", " ") for name in ("created", "expires", "previous_until")]
        _row(table, each["id"], each["name"], each["role"], *times)
    return Group(Text(f"{counted(len(found), 'API key')} ({aws}); times are UTC"), table)


def dead_letters(found: Listing[DeadLetter], *, aws: str) -> RenderableType:
    """A line or two for each letter."""
    if not found.total:
        return Text(f"No dead letters ({aws}).", style="green")
    table = _table("id", "task", "request", "age", "seen", "photo", "why", numbers=["age", "seen"])
    for each in found.letters:
        _row(
            table,
            each.message_id[:SHORT_ID],
            (each.task or "-").removeprefix("faceapp."),
            (each.request_id or "-")[:SHORT_ID],
            age(time.time() - each.sent_s) if each.sent_s else "-",
            str(each.receive_count),
            {"none": "-", "unknown": "?"}.get(each.photo, each.photo),
            each.reason,
        )
    parts: list[RenderableType] = [Text(f"{counted(found.total, 'dead letter')} ({aws})"), table]
    if not found.complete:
        parts.append(Text(beyond(found)))
    return Group(*parts)


def dead_letter(found: DeadLetter) -> RenderableType:
    """Everything about one letter."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts(found):
        if name == "why":
            _row(table, "photo", found.photo)
        _row(table, "request" if name == "task id" else name, value)
    return Group(table, Text(), Text(printable(text_of(found)), overflow="fold"))


def _part(title: str, part: Part[Any], render: Any) -> RenderableType:
    body = Text(f"  {part.trouble}", style="yellow") if part.value is None else render(part.value)
    return Group(Text(), Text(title, style="bold"), body)


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, header_style="dim")
    for each in columns:
        table.add_column(each, justify="right" if each in numbers else "left", overflow="fold")
    return table


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    # As text: rich would read a string's square brackets as markup.
    table.add_row(*(Text(printable(each)) for each in cells), style=style)


def _queues(queues: Sequence[Queue]) -> RenderableType:
    counts = ("visible", "in flight", "delayed")
    table = _table("", "queue", *counts, numbers=counts)
    responses = [each for each in queues if each.kind == "responses"]
    for each in queues:
        if each.kind != "responses" or len(responses) <= QUEUES_SHOWN:
            numbers = (str(each.visible), str(each.in_flight), str(each.delayed))
            late = each.kind == "dead letters" and each.messages
            _row(table, each.kind, each.name, *numbers, style="yellow" if late else None)
        elif each == responses[0]:
            sums = (
                sum(one.visible for one in responses),
                sum(one.in_flight for one in responses),
                sum(one.delayed for one in responses),
            )
            _row(table, each.kind, f"({len(responses)} queues)", *map(str, sums))
    return table


def _instances(instances: Sequence[Instance]) -> RenderableType:
    if not instances:
        return Text("  none")
    table = _table("name", "id", "phase", "type", "for", numbers=["for"])
    for each in instances:
        _row(table, each.name or "-", each.id, each.phase, each.type, age(each.age_s))
    return table


def _workers(workers: Sequence[Worker]) -> RenderableType:
    if not workers:
        return Text("  none: they start when there is work")
    table = _table("name", "processes", "at work", "up for", numbers=["processes", "at work", "up for"])
    for each in workers:
        active = "?" if each.active is None else str(each.active)
        _row(table, each.name, str(each.processes), active, age(each.uptime_s))
    return table


def _scaler(scaler: Scaler) -> RenderableType:
    return Text(f"  {told_by(scaler)}")
