"""People and photos, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faceapp.cli.common import FOLDER, URL, warn_of_plain_http
from faceapp.config import settings


@click.group()
@click.option("--url", default=URL, show_default=True, help="Where the service is.")
@click.pass_context
def people(context: click.Context, url: str) -> None:
    """Enrol, list and forget people."""
    from faceapp.client import Client

    context.obj = Client(url)
    warn_of_plain_http(context.obj)


@people.command("list")
@click.pass_obj
def list_people(client: Any) -> None:
    """Who is enrolled, and with how many photos."""
    for name, photos in client.people().items():
        click.echo(f"{name}\t{photos}")


@people.command()
@click.argument("name")
@click.argument("photos", nargs=-1, required=True, type=FOLDER)
@click.pass_obj
def enrol(client: Any, name: str, photos: tuple[Path, ...]) -> None:
    """Enrol PHOTOS, with one face on each, as NAME: all of them or none."""
    notices = client.enrol(name, list(photos))
    click.echo(f"{name} is enrolled.")
    for notice in notices:
        click.echo(notice, err=True)


@people.command("import")
@click.argument("folder", type=FOLDER)
@click.pass_obj
def import_people(client: Any, folder: Path) -> None:
    """Enrol everybody in FOLDER/<name>/<photo>.jpg; say which photos were refused and why, and who is like them."""
    from faceapp.folders import enrol_people, find_people

    refused = 0
    for each in enrol_people(client, find_people(folder)):
        refused += bool(each.refusal)
        click.echo(f"{each.name}/{each.photo.name}: {each.refusal or 'enrolled'}", err=bool(each.refusal))
        for notice in each.notices:
            click.echo(f"{each.name}/{each.photo.name}: {notice}", err=True)
    if refused:
        raise click.ClickException(f"{refused} photos were refused.")


@people.command()
@click.argument("name")
@click.pass_obj
def forget(client: Any, name: str) -> None:
    """Forget NAME: every photo and vector at once, and within minutes the results that name them."""
    client.forget(name)
    click.echo(f"{name} is forgotten. Results that name them, and the photos of those, are being erased.")


@click.command()
@click.argument("photos", nargs=-1, required=True, type=FOLDER)
@click.option("--url", default=URL, show_default=True, help="Where the service is.")
@click.option("--local", is_flag=True, help="Recognise in this process: no service, no AWS. Prints the names only.")
@click.option("--gallery", metavar="DIR|data.pt", type=FOLDER, help="With --local: a folder DIR/<name>/<photo>.jpg.")
def recognize(photos: tuple[Path, ...], url: str, local: bool, gallery: Path | None) -> None:
    """Name who is on photos.

    Prints a line <file name without extension>:<name> for each of PHOTOS.

    With --local and no --gallery the sample people are known. A course's data.pt needs the network it was made with:
    FACEAPP_EMBEDDER=facenet and FACEAPP_WEIGHTS.
    """
    if gallery and not local:
        raise click.UsageError("--gallery goes with --local: a service has a gallery of its own.")
    if local:
        from faceapp.oneshot import names

        for name in names(settings(), photos, gallery):
            click.echo(name)
        return
    from faceapp.client import Client

    client = Client(url)
    warn_of_plain_http(client)
    for photo in photos:
        click.echo(client.recognise(photo))
