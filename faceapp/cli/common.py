"""What the groups of commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from celery_sqs.commands.common import Misuse
from celery_sqs.errors import ConfigurationError, Error
from faceapp.config import settings
from faceapp.errors import ConfigError, FaceappError

FOLDER = click.Path(path_type=Path)
URL: dict[str, Any] = {
    "default": lambda: f"http://127.0.0.1:{settings().web_port}",
    "show_default": "http://127.0.0.1:FACEAPP_WEB_PORT",
}
"""Of the option or argument that says where the service is: the port is that of `faceapp up` with this environment."""


def warn_of_plain_http(client: Any) -> None:
    """Say on stderr that the client's key can be read on its way."""
    if client.exposes_key:
        click.echo(
            f"Warning: the API key goes to {client.url} over plain HTTP, where others can read it: use https, or a key "
            "that is good for a day.",
            err=True,
        )


class Commands(click.Group):
    """A group whose commands fail with one sentence: status 2 for a setting that cannot be used, 1 for the rest."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ConfigError, ConfigurationError) as error:
            raise Misuse(str(error)) from error
        except FaceappError as error:
            raise click.ClickException(error.detail) from error
        except Error as error:
            raise click.ClickException(str(error)) from error


def which_aws(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that asks AWS itself; it gets the AWS it is to ask, in words, as `aws`."""

    @click.option("--local", "wanted", flag_value="local", help="Ask the embedded AWS of 'faceapp up' on this machine.")
    @click.option("--aws", "wanted", flag_value="aws", help="Ask the AWS account of the credentials that boto3 finds.")
    @wraps(command)
    def chosen(*arguments: Any, wanted: Any, **options: Any) -> None:
        from faceapp.local.target import choose

        command(*arguments, aws=choose(settings(), wanted), **options)

    return chosen
