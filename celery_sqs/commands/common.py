"""What the commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from celery_sqs.errors import ConfigurationError, Error


class Commands(click.Group):
    """A group whose commands fail with one sentence: status 2 for an option that cannot be used, 1 for the rest."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ConfigurationError as error:
            raise Misuse(str(error)) from error
        except Error as error:
            raise click.ClickException(str(error)) from error


class Misuse(click.ClickException):
    exit_code = 2


def with_app(command: Callable[..., None]) -> Callable[..., None]:
    """The option -A; the command gets the Celery app as `app`."""
    return click.option(
        "-A", "--app", required=True, callback=_load, metavar="APP", help="The Celery application, as for 'celery -A'."
    )(command)


def _load(context: click.Context, _: click.Parameter, name: str) -> Any:
    from celery import Celery
    from celery.app.utils import find_app

    # What is missing in the application's own code is its traceback's to tell.
    try:
        found = find_app(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(":")[0].partition(".")[0]):
            raise
        what = f"no {name!r}" if ":" in name else f"no module {name!r}"
        raise click.BadParameter(f"there is {what} here", context) from error
    except AttributeError as error:
        raise click.BadParameter(f"{name!r} has no Celery application in it", context) from error
    if not isinstance(found, Celery):
        raise click.BadParameter(f"{name!r} is no Celery application", context)
    if not str(found.conf.broker_transport or "").startswith("celery_sqs."):
        raise click.BadParameter(f"{name!r} has another transport than celery_sqs", context)
    return found
