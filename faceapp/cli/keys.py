"""API keys, made and revoked with the operator's own AWS credentials."""

from __future__ import annotations

from typing import Any

import click

from celery_sqs import texts
from faceapp.cli.common import which_aws
from faceapp.config import settings
from faceapp.security.key_text import ROLES


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys.

    A key of the role 'recognise' may have photos recognised; 'enrol' may also enrol people and look at them; 'admin'
    may also forget them. A running web tier knows a new key at once, and of other changes within five seconds.
    """


@keys.command()
@click.option("--name", required=True, help="Whose key it is, or what it is for.")
@click.option("--role", required=True, type=click.Choice(ROLES), help="What it may be used for.")
@click.option("--days", type=click.IntRange(1, 3650), help="It expires after so many days.  [default: never]")
@which_aws
def create(aws: str, name: str, role: str, days: int | None) -> None:
    """Make a key and print it: this is the only time that it can be seen."""
    _say(aws, _keys().create(name=name, role=role, days=days))


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@which_aws
def list_keys(aws: str, as_json: bool) -> None:
    """List them, oldest first. Nobody can see the secrets any more."""
    from faceapp.operations import tables

    found = _keys().listing()
    if as_json:
        click.echo(texts.to_json({"aws": aws, "keys": [_shown(each) for each in found]}))
    else:
        tables.console().print(tables.keys([_shown(each) for each in found], aws=aws))


@keys.command()
@click.argument("id")
@click.option(
    "--grace",
    metavar="HOURS",
    type=click.FloatRange(0, 24 * 30),
    default=24.0,
    show_default=True,
    help="So long the secret that it has now is still good.",
)
@which_aws
def rotate(aws: str, id: str, grace: float) -> None:
    """Give the key ID a new secret and print it; the one before stays good for a while."""
    _say(aws, _keys().rotate(id, grace_hours=grace))


@keys.command()
@click.argument("id")
@which_aws
def revoke(aws: str, id: str) -> None:
    """Let the key ID be good no more."""
    revoked = _keys().revoke(id)
    click.echo(f"The key {revoked.id} ({revoked.name}, {revoked.role}) is revoked ({aws}).")


def _keys() -> Any:
    from faceapp.security.keys import Keys
    from faceapp.storage import Storage

    return Keys(Storage(settings()))


def _say(aws: str, minted: Any) -> None:
    """The key alone on standard output, for a script to take; the rest beside it."""
    key = minted.key
    until = f", until {key.expires:%Y-%m-%d}" if key.expires else ""
    click.echo(
        f"The key {key.id} ({key.name}, {key.role}{until}) is good now ({aws}). Keep this, it is shown once:", err=True
    )
    click.echo(minted.text)
    if key.previous:
        click.echo(f"The secret from before is good until {key.previous.until:%Y-%m-%d %H:%M} UTC.", err=True)


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "created": key.created.isoformat(),
        "expires": key.expires.isoformat() if key.expires else None,
        "previous_until": key.previous.until.isoformat() if key.previous else None,
    }
