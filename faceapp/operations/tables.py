"""Status and dead letters as text for a terminal of 80 columns or a pipe, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from celery_sqs.queues.dead_letters import DeadLetter, Listing, Outcome
from faceapp.operations.queues import Queue
from faceapp.operations.status import Instance, Part, Scaler, Status, Worker

SHORT_ID = 8
PIPE_COLUMNS = 80
QUEUES_SHOWN = 3
"""More response queues than these (one a process that asks) are shown as their sum."""


def console(*, error: bool = False) -> Console:
    """Standard output; without colours, and 80 columns wide, where it is no terminal."""
    out = Console(highlight=False, stderr=error)
    return out if out.is_terminal else Console(highlight=False, stderr=error, width=PIPE_COLUMNS, no_color=True)


def to_json(document: Any) -> str:
    """One line of JSON."""
    # A message can hold half a surrogate pair, which no terminal's encoding takes; as an escape it is JSON, too.
    return json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace").decode()


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


def dead_letters(found: Listing, *, aws: str) -> RenderableType:
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
        parts.append(
            Text(
                f"{len(found.letters)} of about {found.total} are shown: the others are beyond --limit, or another "
                "command holds them just now."
            )
        )
    return Group(*parts)


def dead_letter(found: DeadLetter) -> RenderableType:
    """Everything about one letter."""
    table = Table.grid(padding=(0, 2))
    sent = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found.sent_s)) if found.sent_s else "-"
    for name, value in (
        ("message", found.message_id),
        ("task", found.task or "-"),
        ("request", found.request_id or "-"),
        ("sent", sent),
        ("seen", f"{found.receive_count} times, by workers and by looks like this one"),
        ("photo", found.photo),
        ("why", found.reason),
    ):
        _row(table, name, value)
    if found.task:
        hint = "a worker was lost or ran out of time, or the task raised: the workers' logs say which"
        _row(table, "", f"({hint})")
    body = found.body if found.document is None else json.dumps(found.document, indent=2, ensure_ascii=False)
    return Group(table, Text(), Text(printable(body), overflow="fold"))


def loss(found: Listing) -> str:
    """What purging these would lose, in a sentence or two."""
    tasks = Counter(each.task or "no task" for each in found.letters)
    kinds = ", ".join(f"{count} {printable(task)}" for task, count in tasks.most_common())
    more = "" if found.complete else f" and about {found.total - len(found.letters)} more"
    photos = sum(each.photo == "there" for each in found.letters)
    kept = f" {counted(photos, 'photo')} of theirs stay in S3 until they expire." if photos else ""
    return (
        f"{counted(len(found.letters), 'dead letter')} ({kinds}){more} would be gone for good: nobody can send these "
        f"requests again, and they are never answered.{kept}"
    )


def outcome(found: Outcome) -> str:
    """One line."""
    request = f" (request {found.request_id})" if found.request_id else ""
    return printable(f"{found.message_id}{request}: {found.detail}").replace("\n", "\\n")


def as_document(found: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it."""
    document: dict[str, Any] = dataclasses.asdict(found)
    return document


def age(seconds: float) -> str:
    """Two digits or so: 8 s, 12 min, 3.4 h, 5.0 d."""
    if seconds < 100:
        return f"{max(0, seconds):.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def printable(text: str) -> str:
    """The text without what would steer a terminal: a message's body, or a tag, is anybody's."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def counted(count: int, noun: str) -> str:
    """1 photo, 2 photos."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


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
    role = "leads" if scaler.leader else "waits: another one leads"
    return Text(f"  {role}; wants {counted(scaler.wanted, 'instance')}: {scaler.reason}")
