"""Plans, estimates and what is left, as text for a terminal or a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from celery_sqs.texts import counted, printable
from faceapp.deploy import cost
from faceapp.deploy.apply import Event
from faceapp.deploy.changes import Change, Plan
from faceapp.deploy.destroy import Inventory
from faceapp.deploy.status import Status
from faceapp.deploy.target import Target

STYLES = {"add": "green", "change": "yellow", "replace": "red", "may replace": "red", "remove": "red"}
ORDER = ("remove", "replace", "may replace", "change", "add")
WEB = ("WebInstance",)


def plan(found: Plan, target: Target, costs: cost.Estimate) -> RenderableType:
    """What would happen, what it means, and what it costs."""
    parts: list[RenderableType] = [Text(f"{target.prefix} on {target}")]
    if found.nothing:
        return Group(*parts, Text("Nothing to change.", style="green"), Text(), estimate(costs))
    new = "A new stack" if found.kind == "CREATE" else "The stack is there already"
    counts: Counter[str] = Counter(each.action for each in found.changes)
    verbs = {"replace": "to replace", "may replace": "that may be replaced"}
    summary = ", ".join(f"{counts[each]} {verbs.get(each, 'to ' + each)}" for each in ORDER[::-1] if counts[each])
    parts += [Text(f"{new}: {summary or 'no resource changes'}."), Text(), _changes(found.changes)]
    if found.parameters:
        parts += [Text(), Text("Parameters", style="bold"), _parameters(found)]
    parts += [Text(f"! {each}", style="bold red") for each in warnings(found.changes)]
    parts += [Text(each, style="yellow") for each in _notes(found)]
    return Group(*parts, Text(), estimate(costs))


def warnings(changes: Iterable[Change]) -> list[str]:
    """In words, what would be lost or interrupted."""
    found = []
    for each in changes:
        what = "MAY BE REPLACED" if each.action == "may replace" else f"WOULD BE {each.action.upper()}D"
        if each.loses_data:
            lost = "its objects" if each.kind == "AWS::S3::Bucket" else "the messages in it"
            found.append(f"{each.name} ({each.id or each.kind}) {what}: {lost} would be LOST.")
        elif each.name in WEB and each.action != "add":
            found.append(
                f"{each.name} {what}: the address moves to the new one before that has booted, so there are no answers "
                "for a minute, and open requests are cut off. What was accepted is done all the same, and found by its "
                "id."
            )
    return found


def estimate(found: cost.Estimate) -> RenderableType:
    """A line for each of the three."""
    table = Table.grid(padding=(0, 2))
    for what, costs in (
        ("idle, a month", found.idle_month),
        ("1,000 photos, in a burst", found.thousand_photos),
        (f"an hour with {counted(found.workers, 'worker')}", found.busy_hour),
    ):
        table.add_row(what, f"{_dollars(cost.total(costs))} USD", ", ".join(_services(costs)))
    title = Text(f"Estimated cost ({found.source})", style="bold")
    notes = [*found.notes, f"Not counted: {cost.NOT_COUNTED}."]
    return Group(title, table, *(Text(each, style="dim") for each in notes))


def event(found: Event) -> Text:
    """One line."""
    style = "red" if found.failed else "green" if found.status.endswith("_COMPLETE") else ""
    reason = f": {found.reason}" if found.reason and found.failed else ""
    return Text(printable(f"  {found.status.lower().replace('_', ' '):<32} {found.name}{reason}"), style=style)


def _changes(changes: Iterable[Change]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim")
    for column in ("", "resource", "type", "why"):
        table.add_column(column, overflow="fold")
    for each in sorted(changes, key=lambda one: (ORDER.index(one.action), one.name)):
        word = each.action.upper() if each.action in ("replace", "may replace") else each.action
        why = f"{each.why} (stays in the account)" if each.kept and each.action == "remove" else each.why
        table.add_row(
            Text(word), Text(each.name), Text(each.kind.removeprefix("AWS::")), Text(why), style=STYLES[each.action]
        )
    return table


def _parameters(found: Plan) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for each in found.parameters:
        before = f"(default {each.before or 'empty'})" if found.kind == "CREATE" else each.before or "(empty)"
        table.add_row(f"  {each.name}", Text(before, style="dim"), "->", Text(each.after or "(empty)"))
    return table


def _notes(found: Plan) -> list[str]:
    notes = list(found.notes)
    if not found.after.get("WebImage"):
        notes.append(
            "Without an image there is no web-instance and no worker: 'faceapp deploy image' makes one, and 'faceapp "
            "deploy apply --image latest' takes it."
        )
    elif found.after.get("AccessCidr", "").startswith("127."):
        notes.append("AccessCidr lets nobody in: --cidr YOUR.ADDRESS/32 lets you.")
    elif found.after.get("AccessPort") == "8000":
        notes.append("Port 8000 is plain HTTP: API keys and photos can be read on their way. --port 443 is TLS.")
    return notes


def _services(costs: Mapping[str, float]) -> list[str]:
    return [f"{name} {_dollars(each)}" for name, each in sorted(costs.items(), key=lambda one: -one[1]) if each]


def _dollars(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 0.1 else f"{amount:.4f}".rstrip("0").ljust(4, "0")


def inventory(found: Inventory, target: Target, *, with_gallery: bool, with_images: bool) -> RenderableType:
    """What destroy would delete, and what it would keep."""
    state = (
        f"the stack {target.stack} ({found.state}, {counted(found.resources, 'resource')})" if found.stack_id else ""
    )
    lines = [Text(f"{target.prefix} on {target}"), Text("This would be deleted for good:", style="bold")]
    goes = [state] if state else []
    kept: list[str] = []
    for each in found.buckets:
        words = f"the bucket {each.name} with {counted(each.objects, 'object')}"
        (kept if each.gallery and not with_gallery else goes).append(words)
    goes += [f"the queue {each.name} with {counted(each.messages, 'message')}" for each in found.queues]
    goes += [str(each) for each in (*found.instances, *found.others)]
    (goes if with_images else kept).extend(str(each) for each in found.images)
    lines += [Text(printable(f"  {each}"), style="red") for each in goes]
    if with_gallery:
        lines.append(
            Text("EVERYBODY WHO IS ENROLLED WOULD BE FORGOTTEN. NOBODY CAN BRING THEM BACK.", style="bold red")
        )
    if kept:
        lines += [Text("This stays:", style="bold"), *(Text(printable(f"  {each}")) for each in kept)]
    return Group(*lines)


def kept(found: Inventory, with_gallery: bool, with_images: bool) -> str:
    """What stayed on purpose, as the end of a sentence."""
    words = [] if with_gallery else [f"the bucket {each.name}" for each in found.buckets if each.gallery]
    words += [] if with_images or not found.images else [counted(len(found.images), "image")]
    return f" but {' and '.join(words)}" if words else ""


def status(found: Status, target: Target) -> RenderableType:
    """The stack at a glance."""
    lines = [
        Text(f"{target.prefix} on {target}"),
        Text(f"Stack {found.state}", style="" if found.healthy else "yellow"),
    ]
    for title, each in (("Outputs", found.outputs), ("Set otherwise than by default", found.chosen)):
        lines += [Text(), Text(title, style="bold")]
        lines += [Text(printable(f"  {name}  {value}")) for name, value in sorted(each.items())] or [Text("  none")]
    for title, things in (("Instances", found.instances), ("Images", found.images)):
        lines += [Text(), Text(title, style="bold")]
        lines += [Text(printable(f"  {each.id}  {each.words}")) for each in things] or [Text("  none")]
    lines += [Text(), Text("Last events", style="bold")]
    lines += [Text.assemble(f"  {at:%Y-%m-%d %H:%M:%S}", event(each)) for at, each in found.events]
    lines += [Text(), *(Text(f"! {each}", style="red") for each in found.alarms)]
    return Group(*lines, *([Text("No alarm rings.", style="green")] if not found.alarms else []))
