"""The command line. Everything heavy is imported by the command that needs it, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from faceapp import __version__
from faceapp.config import Settings, settings
from faceapp.errors import ConfigError, FaceappError

FOLDER = click.Path(path_type=Path)
URL = "http://127.0.0.1:8000"
WATCH_S = 2.0


class Commands(click.Group):
    """A group whose commands fail with one sentence: status 2 for a setting that cannot be used, 1 for the rest."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ConfigError as error:
            raise _Misuse(error.detail) from error
        except FaceappError as error:
            raise click.ClickException(error.detail) from error


class _Misuse(click.ClickException):
    exit_code = 2


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def main() -> None:
    """An elastic face recognition service.

    'faceapp up' runs all of it on this machine; the other commands run or ask one part. 'faceapp settings' lists the
    FACEAPP_* variables that set it up.
    """


@main.command()
@click.option("--people", metavar="DIR", type=FOLDER, help="Enrol the photos in this folder: DIR/<name>/<photo>.jpg.")
@click.option("--fresh", is_flag=True, help="Start without the people who were enrolled the last time.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the services log (it is in files as well).")
def up(people: Path | None, fresh: bool, verbose: bool) -> None:
    """Run everything here, AWS embedded, until Ctrl-C."""
    from faceapp.local.up import Options
    from faceapp.local.up import up as run

    run(settings(), Options(people=people, fresh=fresh, verbose=verbose))


@main.command()
def web() -> None:
    """Run the web tier."""
    from faceapp import logs, tracing
    from faceapp.http.server import serve

    logs.configure(settings(), service="faceapp-web")
    tracing.enabled()
    serve(settings())


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(celery_options: tuple[str, ...]) -> None:
    """Run a worker; CELERY_OPTIONS are those of 'celery -A faceapp.tasks worker'."""
    settings()
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "worker", *celery_options])


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def flower(flower_options: tuple[str, ...]) -> None:
    """Run Flower; FLOWER_OPTIONS are those of 'celery -A faceapp.tasks flower'."""
    settings()
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "flower", *flower_options])


@main.command()
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be started and stopped.")
def scaler(dry_run: bool) -> None:
    """Start and stop workers by the queue's depth."""
    from faceapp import logs, tracing
    from faceapp.scaler import run

    logs.configure(settings(), service="faceapp-scaler")
    tracing.load("faceapp-scaler")
    run(settings(), dry_run=dry_run)


@main.group()
@click.option("--url", default=URL, show_default=True, help="Where the service is.")
@click.pass_context
def people(context: click.Context, url: str) -> None:
    """Enrol, list and forget people."""
    from faceapp.client import Client

    context.obj = Client(url)


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
    client.enrol(name, list(photos))
    click.echo(f"{name} is enrolled.")


@people.command("import")
@click.argument("folder", type=FOLDER)
@click.pass_obj
def import_people(client: Any, folder: Path) -> None:
    """Enrol everybody in FOLDER/<name>/<photo>.jpg, and say which photos were refused and why."""
    from faceapp.folders import enrol_people, find_people

    refused = 0
    for each in enrol_people(client, find_people(folder)):
        refused += bool(each.refusal)
        click.echo(f"{each.name}/{each.photo.name}: {each.refusal or 'enrolled'}", err=bool(each.refusal))
    if refused:
        raise click.ClickException(f"{refused} photos were refused.")


@people.command()
@click.argument("name")
@click.pass_obj
def forget(client: Any, name: str) -> None:
    """Forget NAME: every photo and every vector."""
    client.forget(name)
    click.echo(f"{name} is forgotten.")


@main.command()
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
    for photo in photos:
        click.echo(client.recognise(photo))


@main.command()
@click.option("--policy", "policies", multiple=True, default=["work/balanced"], show_default=True, metavar="NAME|all")
@click.option("--workload", "workloads", multiple=True, default=["all"], show_default=True, metavar="NAME|FILE.csv|all")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same run.  [default: a new one]")
@click.option("--runs", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs, with seeds in a row.")
@click.option("--instances", type=click.IntRange(1, 1000), default=20, show_default=True, help="Never more than these.")
@click.option("--slo", type=click.FloatRange(1, 86_400), default=120, show_default=True, help="Seconds for an answer.")
@click.option("--service", type=click.FloatRange(0.01, 20), default=1, show_default=True, help="Seconds of a message.")
@click.option("--faults", default="none", show_default=True, metavar="NAMES|all", help="What goes wrong, with commas.")
@click.option("--price", type=click.FloatRange(0), default=0.0416, show_default=True, help="USD an instance-hour.")
@click.option("--bound", is_flag=True, help="Compare with a lower bound that knows the future (needs scipy).")
@click.option("--plot", is_flag=True, help="Plot depth, instances and latency in the terminal.")
@click.option("--png", type=FOLDER, metavar="FILE", help="Plot them into this file.")
def simulate(**options: Any) -> None:
    """Try scaling policies on simulated days: what they make of workloads, and what they are billed.

    --policy and --workload can be given several times. Policies are this project's (work/fast, work/balanced, work/eco,
    depth, target, step) and what others do (target-tracking, keda, keda-tuned, knative, naive, self-stop).

    Workloads are step, bursts-10, bursts-50, bursts-100, diurnal, mmpp, flash-crowd, on-off, trickle and sparse, or a
    CSV file with a column 'seconds': when each message arrives.

    Faults are lying-counts, dead-starts, throttling, spot-losses, slow-boots, duplicates and lost-events.
    """
    from faceapp.scaling.simulation.command import options_of, simulate

    simulate(options_of(**options))


def which_aws(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that asks AWS itself; it gets the AWS it is to ask, in words, as `aws`."""

    @click.option("--local", "wanted", flag_value="local", help="Ask the embedded AWS of 'faceapp up' on this machine.")
    @click.option("--aws", "wanted", flag_value="aws", help="Ask the AWS account of the credentials that boto3 finds.")
    @wraps(command)
    def chosen(*arguments: Any, wanted: Any, **options: Any) -> None:
        from faceapp.local.target import choose

        command(*arguments, aws=choose(settings(), wanted), **options)

    return chosen


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--watch", is_flag=True, help="Ask again every two seconds, until Ctrl-C.")
@which_aws
def status(aws: str, as_json: bool, watch: bool) -> None:
    """Show queues, instances, workers and the scaler.

    A part that does not answer is a line that says so; the others are shown all the same.

    The exit status is 0 when all is well. It is 1 when SQS, EC2, S3 or a ready instance's worker does not answer, when
    the scaler is in trouble, when dead letters wait, or when requests wait and there is neither a worker nor a scaler.
    No worker at all is well, and so is a scaler that cannot be reached from here.
    """
    from faceapp import tables, tasks
    from faceapp.status import ask

    def show() -> bool:
        found = ask(settings(), tasks.app, aws=aws)
        if as_json:
            click.echo(tables.to_json(found.to_dict()))
        else:
            if watch:
                click.clear()
            tables.console().print(tables.status(found))
        return found.healthy

    healthy = show()
    with suppress(KeyboardInterrupt):
        while watch:
            time.sleep(WATCH_S)
            healthy = show()
    if not healthy:
        sys.exit(1)


@main.group("dead-letters")
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
    from faceapp import tables
    from faceapp.dead_letters import DeadLetters

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
    from faceapp import tables
    from faceapp.dead_letters import DeadLetters

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
    from faceapp.dead_letters import DeadLetters

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
    from faceapp import tables
    from faceapp.dead_letters import DeadLetters, Listing

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
    from faceapp import tables

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


@main.command("settings")
def list_settings() -> None:
    """List the FACEAPP_* variables."""
    current = settings()
    for each in fields(Settings):
        rule = each.metadata["rule"]
        click.echo(f"FACEAPP_{each.name.upper()}={getattr(current, each.name)}\n    {rule.doc} ({rule.takes})")
