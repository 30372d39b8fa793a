"""Requests that failed too often."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from faceapp.cli.common import which_aws
from faceapp.config import settings


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at requests that failed too often, send them again or drop them.

    An ID is that of the message or of the request; its first characters will do, six at least. Looking changes nothing,
    but holds the letters for a moment, and SQS counts how often each was seen.
    """


@dead_letters.command("list")
@click.option(
    "--limit", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Show no more than these."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@which_aws
def list_dead_letters(aws: str, limit: int, as_json: bool) -> None:
    """List them, oldest first: what, since when, and why as far as it is known."""
    from celery_sqs.queues.dead_letters import DeadLetters
    from faceapp.operations import tables

    found = DeadLetters(settings()).listing(limit)
    if as_json:
        click.echo(tables.to_json({"aws": aws, **tables.as_document(found), "complete": found.complete}))
    else:
        tables.console().print(tables.dead_letters(found, aws=aws))


@dead_letters.command("show")
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@which_aws
def show_dead_letter(aws: str, id: str, as_json: bool) -> None:
    """Show everything about one, its decoded message included."""
    from celery_sqs.queues.dead_letters import DeadLetters
    from faceapp.operations import tables

    found = DeadLetters(settings()).show([id])[0]
    if as_json:
        click.echo(tables.to_json({"aws": aws, **tables.as_document(found)}))
    else:
        tables.console().print(tables.dead_letter(found))


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--force", is_flag=True, help="Also those that would only fail again: no task, or the photo is gone.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")
@which_aws
def redrive(aws: str, ids: tuple[str, ...], everything: bool, force: bool, as_json: bool) -> None:
    """Send these to the request queue again, with all their tries.

    The exit status is 1 when one of them stays.
    """
    from celery_sqs.queues.dead_letters import DeadLetters

    _check_ids(ids, everything)
    _say_outcomes(DeadLetters(settings()).redrive(ids or None, force=force), "sent again", aws, as_json)


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each (with --yes).")
@which_aws
def purge(aws: str, ids: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Delete these for good. Says what is lost, and asks first."""
    from celery_sqs.queues.dead_letters import DeadLetters, Listing
    from faceapp.operations import tables

    _check_ids(ids, everything)
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("purge asks first, and nobody can answer here: give --yes.")
    letters = DeadLetters(settings())
    if not yes:
        found = Listing.of(letters.show(ids)) if ids else letters.listing()
        if not found.letters:
            raise click.ClickException(f"There are no dead letters ({aws}).")
        click.echo(f"On {aws}: {tables.loss(found)}")
        click.confirm("Purge them?", abort=True)
    _say_outcomes(letters.purge(ids or None), "purged", aws, as_json)


def _check_ids(ids: tuple[str, ...], everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("Say which: give IDs ('faceapp dead-letters list' shows them), or --all.")


def _say_outcomes(outcomes: Iterable[Any], done: str, aws: str, as_json: bool) -> None:
    from faceapp.operations import tables

    counts = {True: 0, False: 0}
    for each in outcomes:
        counts[each.done] += 1
        if as_json:
            click.echo(tables.to_json(tables.as_document(each)))
        else:
            click.echo(tables.outcome(each), err=not each.done)
    if not as_json:
        click.echo(f"{tables.counted(counts[True], 'dead letter')} {done} ({aws}).")
    if counts[False]:
        raise click.ClickException(f"{tables.counted(counts[False], 'dead letter')} not {done}.")
