"""People and photos, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faceapp.cli.common import FOLDER, URL, warn_of_plain_http
from faceapp.config import settings


@click.group()
@click.option("--url", **URL, help="Where the service is.")
@click.pass_context
def people(context: click.Context, url: str) -> None:
    """Enrol, list and forget people."""
    from faceapp.operations.client import Client

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
@click.argument("folder", type=FOLDER, required=False)
@click.option("--csv", "labels", metavar="FILE", type=FOLDER, help="Says who is on FOLDER's photos: file,name lines.")
@click.option("--data", metavar="data.pt", type=FOLDER, help="A course's vectors instead of a folder of photos.")
@click.option("--aws", is_flag=True, help="With --data: into the account of the credentials that boto3 finds.")
@click.pass_obj
def import_people(client: Any, folder: Path | None, labels: Path | None, data: Path | None, aws: bool) -> None:
    """Enrol everybody in FOLDER/<name>/<photo>.jpg; say which photos were refused and why, and who is like them.

    With --csv the photos lie in FOLDER itself, and of each person as many are enrolled as it takes to answer all of
    them right. With --data the vectors of a data.pt are put into the gallery of the 'faceapp up' on this machine.
    """
    if bool(folder) == bool(data) or (labels and not folder):
        raise click.UsageError("Name a FOLDER (with --csv, if its photos lie in no folders of people), or --data.")
    if data:
        _import_data(data, aws=aws)
    elif folder and labels:
        _import_labelled(client, folder, labels)
    elif folder:
        _import_folder(client, folder)


def _import_data(data: Path, *, aws: bool) -> None:
    from faceapp.local.target import choose
    from faceapp.operations.data_file import import_data

    where = choose(settings(), "aws" if aws else "local")
    count, people = import_data(settings(), data)
    click.echo(f"{count} vectors of {people} people are in the gallery of {where}.")


def _import_labelled(client: Any, folder: Path, labels: Path) -> None:
    from faceapp.operations.labelled import choose, read_labels
    from faceapp.people.names import clean
    from faceapp.recognition import Recogniser

    labelled, missing = read_labels(folder, labels)
    if missing:
        click.echo(f"{len(missing)} photos that {labels} names are not in {folder}: {', '.join(missing[:5])}", err=True)
    recogniser = Recogniser(**settings().model_options)
    choice = choose(recogniser, labelled, threshold=settings().largest_distance(recogniser.threshold))
    for name, photos in choice.people.items():
        client.enrol(name, photos)
        click.echo(f"{name}: {', '.join(photo.name for photo in photos)}")
    right, total = len(labelled) - len(choice.wrong), len(labelled) + len(missing)
    click.echo(f"{right} of {total} photos are answered right.")
    named = {each.name for each in labelled} | {clean(name) for name in choice.people}
    if others := client.people().keys() - named:
        click.echo(
            f"Warning: {labels} does not name everybody in the gallery ({len(others)} more), and those may be answered "
            "instead: forget them ('faceapp people forget NAME'), or start with --fresh.",
            err=True,
        )
    for photo, answer in list(choice.wrong.items())[:10]:
        click.echo(f"{photo.name} is answered {answer}.", err=True)
    if right < total:
        raise click.ClickException(f"{total - right} photos are answered wrong or are not there.")


def _import_folder(client: Any, folder: Path) -> None:
    from faceapp.operations.folders import enrol_people, find_people

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
@click.option("--url", **URL, help="Where the service is.")
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
        from faceapp.operations.oneshot import names

        for name in names(settings(), photos, gallery):
            click.echo(name)
        return
    from faceapp.operations.client import Client

    client = Client(url)
    warn_of_plain_http(client)
    for photo in photos:
        click.echo(client.recognise(photo))
