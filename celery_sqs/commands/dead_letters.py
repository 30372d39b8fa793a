"""Messages that were delivered too often: the commands, for any application.

An application with a command line of its own makes its group of them, with its own words and columns: a `Desk`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from celery_sqs.commands.common import with_app
from celery_sqs.texts import SHORT_ID, age, as_document, counted, in_a_line, printable, table, to_json

if TYPE_CHECKING:
    from celery_sqs.queues.dead_letters import DeadLetters
    from celery_sqs.queues.letters import DeadLetter, Listing, Outcome

HINT = "a worker was lost or ran out of time, or the task raised: the workers' logs say which"


class Desk:
    """The dead letters that a command is about, and how it shows them."""

    noun = "task"
    """What an id is of, beside the message's."""
    lost = "nobody can send these tasks again, and they are never answered."
    """What dropping them means."""

    def __init__(self, letters: DeadLetters[Any], where: str) -> None:
        self.letters, self.where = letters, where

    def document(self, found: Any) -> dict[str, Any]:
        """A listing, a letter or an outcome as JSON."""
        return as_document(found)

    def show_all(self, found: Listing[Any]) -> None:
        """Print a line for each letter."""
        if not found.total:
            click.echo(f"No dead letters ({self.where}).")
            return
        rows = [
            (
                each.message_id[:SHORT_ID],
                in_a_line(each.task or "-"),
                in_a_line((each.task_id or "-")[:SHORT_ID]),
                in_a_line(each.queue or "?"),
                age(time.time() - each.sent_s) if each.sent_s else "-",
                str(each.receive_count),
                in_a_line(each.reason),
            )
            for each in found.letters
        ]
        click.echo(f"{counted(found.total, 'dead letter')} ({self.where})")
        for line in table(("id", "task", "task id", "queue", "age", "seen", "why"), rows, numbers=("age", "seen")):
            click.echo(line)
        if not found.complete:
            click.echo(beyond(found))

    def show(self, found: DeadLetter) -> None:
        """Print everything about one letter."""
        for name, value in facts(found):
            click.echo(f"{name:8} {in_a_line(value)}".rstrip())
        click.echo()
        click.echo(printable(text_of(found)))

    def loss(self, found: Listing[Any]) -> str:
        """What dropping these would lose, in a sentence or two."""
        tasks = Counter(each.task or "no task" for each in found.letters)
        kinds = ", ".join(f"{count} {in_a_line(task)}" for task, count in tasks.most_common())
        more = "" if found.complete else f" and about {found.total - len(found.letters)} more"
        return f"{counted(len(found.letters), 'dead letter')} ({kinds}){more} would be gone for good: {self.lost}"

    def outcome(self, found: Outcome) -> str:
        """What became of one, in a line."""
        about = f" ({self.noun} {found.task_id})" if found.task_id else ""
        return in_a_line(f"{found.message_id}{about}: {found.detail}")


def beyond(found: Listing[Any]) -> str:
    """Says that a listing is not all."""
    return (
        f"{len(found.letters)} of about {found.total} are shown: the others are beyond --limit, or another command "
        "holds them just now."
    )


def facts(found: DeadLetter) -> Iterable[tuple[str, str]]:
    """What is known about a letter, by name."""
    sent = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found.sent_s)) if found.sent_s else "-"
    yield "message", found.message_id
    yield "task", found.task or "-"
    yield "task id", found.task_id or "-"
    yield "queue", found.queue or "?"
    yield "sent", sent
    yield "seen", f"{found.receive_count} times, by workers and by looks like this one"
    yield "why", found.reason
    if found.task:
        yield "", f"({HINT})"


def text_of(found: DeadLetter) -> str:
    """The message, decoded where it is a task."""
    import json

    return found.body if found.document is None else json.dumps(found.document, indent=2, ensure_ascii=False)


def group(
    open_desk: Callable[[Callable[..., None]], Callable[..., None]], *, retry: str, drop: str, program: str
) -> click.Group:
    """The commands. `open_desk` decorates one with the options that say whose letters they are, and gives it a `desk`;
    `retry` and `drop` are the names of the two that act, `program` what one types for the group."""

    @click.group("dead-letters")
    def commands() -> None:
        """Look at messages that were delivered too often, send them again or drop them.

        An ID is that of the message or of its task; its first characters will do, six at least. Looking changes
        nothing, but holds the letters for a moment, and SQS counts how often each was seen.
        """

    @commands.command("list")
    @click.option(
        "--limit", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Show no more than these."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
    @open_desk
    def list_all(desk: Desk, limit: int, as_json: bool) -> None:
        """List them, oldest first: what, since when, and why as far as it is known."""
        found = desk.letters.listing(limit)
        if as_json:
            click.echo(to_json({**desk.document(found), "complete": found.complete}))
        else:
            desk.show_all(found)

    @commands.command()
    @click.argument("id")
    @click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
    @open_desk
    def show(desk: Desk, id: str, as_json: bool) -> None:
        """Show everything about one, its decoded message included."""
        [found] = desk.letters.show([id])
        if as_json:
            click.echo(to_json(desk.document(found)))
        else:
            desk.show(found)

    @commands.command(retry)
    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option("--all", "everything", is_flag=True, help="All of them.")
    @click.option("--force", is_flag=True, help="Also those that would only fail again.")
    @click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")
    @open_desk
    def send_again(desk: Desk, ids: tuple[str, ...], everything: bool, force: bool, as_json: bool) -> None:
        """Send these to their work queue again, with all their tries.

        The exit status is 1 when one of them stays.
        """
        _check_ids(ids, everything, program)
        _say_outcomes(desk, desk.letters.retry(ids or None, force=force), "sent again", as_json)

    @commands.command(drop)
    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option("--all", "everything", is_flag=True, help="All of them.")
    @click.option("--yes", is_flag=True, help="Do not ask first.")
    @click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each (with --yes).")
    @open_desk
    def delete(desk: Desk, ids: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
        """Delete these for good. Says what is lost, and asks first."""
        _check_ids(ids, everything, program)
        if not yes and (as_json or not sys.stdin.isatty()):
            raise click.UsageError(f"{drop} asks first, and nobody can answer here: give --yes.")
        if not yes:
            _ask(desk, ids, drop)
        _say_outcomes(desk, desk.letters.drop(ids or None), "dropped", as_json)

    return commands


def _check_ids(ids: tuple[str, ...], everything: bool, program: str) -> None:
    if bool(ids) == everything:
        raise click.UsageError(f"Say which: give IDs ('{program} list' shows them), or --all.")


def _ask(desk: Desk, ids: tuple[str, ...], drop: str) -> None:
    from celery_sqs.queues.letters import Listing

    found = Listing.of(desk.letters.show(ids)) if ids else desk.letters.listing()
    if not found.letters:
        raise click.ClickException(f"There are no dead letters ({desk.where}).")
    click.echo(f"On {desk.where}: {desk.loss(found)}")
    click.confirm(f"{drop.capitalize()} them?", abort=True)


def _say_outcomes(desk: Desk, outcomes: Iterable[Outcome], done: str, as_json: bool) -> None:
    counts = {True: 0, False: 0}
    for each in outcomes:
        counts[each.done] += 1
        if as_json:
            click.echo(to_json(desk.document(each)))
        else:
            click.echo(desk.outcome(each), err=not each.done)
    if not as_json:
        click.echo(f"{counted(counts[True], 'dead letter')} {done} ({desk.where}).")
    if counts[False]:
        raise click.ClickException(f"{counted(counts[False], 'dead letter')} not {done}.")


def _of_app(command: Callable[..., None]) -> Callable[..., None]:
    @with_app
    @wraps(command)
    def opened(*arguments: Any, app: Any, **options: Any) -> None:
        from celery_sqs.queues import dead_letters

        command(*arguments, desk=Desk(dead_letters.of(app), str(app.main or "the application")), **options)

    return opened


dead_letters = group(_of_app, retry="retry", drop="drop", program="python -m celery_sqs dead-letters")
