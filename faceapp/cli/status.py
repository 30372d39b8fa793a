"""The system at a glance."""

from __future__ import annotations

import click

from celery_sqs import texts
from celery_sqs.commands.status import watch as watch_for
from faceapp.cli.common import which_aws
from faceapp.config import settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--watch", is_flag=True, help="Ask again every two seconds, until Ctrl-C.")
@which_aws
def status(aws: str, as_json: bool, watch: bool) -> None:
    """Show queues, instances, workers and the scaler.

    A part that does not answer is a line that says so; the others are shown all the same.

    The exit status is 0 when all is well. It is 1 when SQS, EC2, S3 or a ready instance's worker does not answer, when
    the scaler is in trouble, when dead letters wait, or when requests wait and there is neither a worker nor a scaler,
    and with an AWS on this machine also when the scaler does not answer. No worker at all is well, and so is an
    account's scaler that cannot be reached from here.
    """
    from faceapp import tasks
    from faceapp.operations import tables
    from faceapp.operations.status import ask

    def show() -> bool:
        found = ask(settings(), tasks.app, aws=aws)
        if as_json:
            click.echo(texts.to_json(found.to_dict()))
        else:
            if watch:
                click.clear()
            tables.console().print(tables.status(found))
        return found.healthy

    watch_for(show, again=watch)
