"""The command line. Everything heavy is imported by the command that needs it, so that `--help` is quick."""

from __future__ import annotations

import os
from dataclasses import fields

import click

from celery_sqs.commands.simulate import simulate
from faceapp import __version__
from faceapp.cli.bench import bench
from faceapp.cli.common import Commands
from faceapp.cli.dead_letters import dead_letters
from faceapp.cli.deploy import deploy
from faceapp.cli.keys import keys
from faceapp.cli.people import people, recognize
from faceapp.cli.services import flower, scaler, up, web, worker
from faceapp.cli.status import status
from faceapp.config import Settings, settings, strange


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """An elastic face recognition service.

    'faceapp up' runs all of it on this machine; the other commands run or ask one part. 'faceapp settings' lists the
    FACEAPP_* variables that set it up.
    """
    if context.invoked_subcommand not in LOGGED:
        for clause in strange(os.environ).values():
            click.echo(f"Warning: {clause}: it is passed over.", err=True)


@main.command("settings")
def list_settings() -> None:
    """List the FACEAPP_* variables."""
    current = settings()
    for each in fields(Settings):
        rule = each.metadata["rule"]
        value = getattr(current, each.name)
        shown = "(set)" if rule.secret and value else value
        click.echo(f"FACEAPP_{each.name.upper()}={shown}\n    {rule.doc} ({rule.takes})")


services = (up, web, worker, flower, scaler)
LOGGED = {each.name for each in (web, worker, flower, scaler)}
"""Commands that say in their log what others say here."""
for command in (*services, people, recognize, simulate, status, dead_letters, keys, deploy, bench):
    main.add_command(command)
