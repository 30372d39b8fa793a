"""`python -m celery_sqs`: what is done for an application beside its workers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery
from celery.app.utils import find_app

from celery_sqs import options as sqs_options
from celery_sqs.errors import Error
from celery_sqs.queues import janitor


def _found(_ctx: click.Context, _param: click.Parameter, name: str) -> Celery:
    try:
        found = find_app(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(f"{name!r} has no Celery application: {error}") from error
    if not isinstance(found, Celery):
        raise click.BadParameter(f"{name!r} is no Celery application")
    return found


def with_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option `-A` of a command, as `celery -A` has it: the application is the command's argument `app`."""
    of = click.option("-A", "--app", required=True, callback=_found, help="The application: a module, or module:name.")
    return of(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Celery on SQS: what is done for an application beside its workers."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@main.command()
@with_app
@click.option("--watch", is_flag=True, help=f"Go on for ever, with a look every {janitor.EVERY_S / 60:g} minutes.")
@click.option("--at-once", is_flag=True, help="Look once, and believe what is seen: not after the machine was asleep.")
@click.option("--dry-run", is_flag=True, help="Look once, delete nothing, and say what looks abandoned.")
def sweep(app: Celery, watch: bool, at_once: bool, dry_run: bool) -> None:
    """Delete the queues and subscriptions that killed processes left behind.

    Processes note every ten minutes that their queues are in use. What has been unused for half an hour is deleted if
    it still is a quarter of an hour later: without an option this takes that long, and ends.
    """
    options = sqs_options.of(app)
    suspects = janitor.Suspects(apart_s=0.0 if at_once else janitor.LOOKS_APART_S)
    try:
        if dry_run:
            suspects = janitor.Suspects(apart_s=float("inf"))
            janitor.sweep(options, suspects)
            _say(suspects.names, "looks abandoned")
            return
        _say(janitor.sweep(options, suspects), "deleted")
        while watch or (suspects.names and not at_once):
            time.sleep(janitor.EVERY_S if watch else janitor.LOOKS_APART_S)
            _say(janitor.sweep(options, suspects), "deleted")
            if not watch:
                return
    except (Error, BotoCoreError, ClientError) as error:
        raise click.ClickException(str(error)) from error


def _say(names: list[str], what: str) -> None:
    for name in names:
        click.echo(f"{what}: {name}")
