"""The command line. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from celery_sqs.commands.common import Commands, with_app
from celery_sqs.commands.dead_letters import dead_letters
from celery_sqs.commands.simulate import simulate
from celery_sqs.commands.status import status

FORMAT = "%(asctime)s %(levelname)s %(message)s"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """What a Celery application on SQS needs besides Celery's own commands."""


@main.command()
@with_app
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be started and stopped.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Of the status; 0: any.  [default: the option's, 8001]")
@click.option("--loglevel", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="INFO", show_default=True)
def scaler(app: Any, dry_run: bool, port: int | None, loglevel: str) -> None:
    """Start and stop workers by the depth of their queues, until Ctrl-C.

    What is scaled is in the application's options (celery_sqs.Options(scaler=celery_sqs.ScalerOptions(...))).
    """
    from celery_sqs import options

    try:
        from celery_sqs.scaler import loop
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise click.ClickException("The scaler needs prometheus_client: pip install '.[scaler]'.") from error

    logging.basicConfig(level=loglevel, format=FORMAT)
    # Which credentials it found, for each client.
    logging.getLogger("botocore").setLevel(max(logging.WARNING, logging.getLogger().level))
    given = options.of(app).scaler
    loop.run(app, options=given if port is None else replace(given, status_port=port), dry_run=dry_run)


@main.command()
@with_app
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C, with a look every ten minutes.")
@click.option("--at-once", is_flag=True, help="Look once, and believe what is seen: not after the machine was asleep.")
@click.option("--dry-run", is_flag=True, help="Look once, delete nothing, and say what looks abandoned.")
def sweep(app: Any, watch: bool, at_once: bool, dry_run: bool) -> None:
    """Delete the queues and subscriptions that killed processes left behind.

    Processes note every ten minutes that their queues are in use. What has been unused for half an hour is deleted if
    it still is a quarter of an hour later: without an option this takes that long, and ends.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    found = False
    try:
        for sign, name in _swept(app, watch=watch, at_once=at_once, dry_run=dry_run):
            found = True
            click.echo(f"{sign}: {name}")
        if not found:
            click.echo("Nothing that has been unused for half an hour.", err=True)
    except (BotoCoreError, ClientError) as error:
        raise click.ClickException(str(error)) from error


def _swept(app: Any, *, watch: bool, at_once: bool, dry_run: bool) -> Iterator[tuple[str, str]]:
    """What looks abandoned or was deleted, and which of the two."""
    from botocore.exceptions import BotoCoreError, ClientError

    from celery_sqs import options
    from celery_sqs.queues import janitor

    given = options.of(app)
    suspects = janitor.Suspects(apart_s=0.0 if at_once else float("inf") if dry_run else janitor.LOOKS_APART_S)
    yield from (("deleted", name) for name in janitor.sweep(given, suspects))
    if dry_run:
        yield from (("looks abandoned", name) for name in suspects.names)
        return
    while watch or (suspects.names and not at_once):
        time.sleep(janitor.EVERY_S if watch else janitor.LOOKS_APART_S)
        try:
            yield from (("deleted", name) for name in janitor.sweep(given, suspects))
        except (BotoCoreError, ClientError) as error:
            if not watch:
                raise
            yield "not this time", str(error)
        if not watch:
            return


for command in (dead_letters, status, simulate):
    main.add_command(command)
