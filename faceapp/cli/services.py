"""The services themselves: all of them here, or one."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from faceapp.cli.common import FOLDER
from faceapp.config import settings
from faceapp.errors import ConfigError


@click.command()
@click.option("--people", metavar="DIR", type=FOLDER, help="Enrol the photos in this folder: DIR/<name>/<photo>.jpg.")
@click.option("--fresh", is_flag=True, help="Start without the people who were enrolled the last time.")
@click.option("--course", metavar="ID", help="Set all that a course's grader expects: see docs/course.md.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the services log (it is in files as well).")
def up(people: Path | None, fresh: bool, course: str | None, verbose: bool) -> None:
    """Run everything here, AWS embedded, until Ctrl-C."""
    from faceapp.local.course import for_course
    from faceapp.local.up import Options
    from faceapp.local.up import up as run

    chosen = for_course(settings(), course, os.environ) if course else settings()
    # A grader's people could be answered with the names of the samples.
    run(chosen, Options(people=people, fresh=fresh, samples=not course, verbose=verbose))


@click.command()
def web() -> None:
    """Run the web tier."""
    from faceapp.http.server import serve
    from faceapp.observability import logs, tracing

    _check_apart()
    logs.configure(settings(), service="faceapp-web")
    tracing.enabled()
    serve(settings())


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(celery_options: tuple[str, ...]) -> None:
    """Run a worker; CELERY_OPTIONS are those of 'celery -A faceapp.tasks worker'."""
    _check()
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "worker", *celery_options])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def flower(flower_options: tuple[str, ...]) -> None:
    """Run Flower; FLOWER_OPTIONS are those of 'celery -A faceapp.tasks flower'."""
    _check()
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "flower", *flower_options])


@click.command()
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be started and stopped.")
@click.option("--local", "wanted", flag_value="local", help="With --dry-run: ask the embedded AWS of 'faceapp up'.")
@click.option("--aws", "wanted", flag_value="aws", help="With --dry-run: ask the account of boto3's credentials.")
def scaler(dry_run: bool, wanted: Any) -> None:
    """Start and stop workers by the queue's depth, until Ctrl-C.

    A dry run asks the AWS that the operator's commands ask, and its status is on a free port, beside the scaler's own.
    """
    from faceapp.observability import logs, tracing
    from faceapp.scaler import run

    if wanted and not dry_run:
        raise click.UsageError("--local and --aws go with --dry-run.")
    if dry_run:
        from faceapp.local.target import choose

        click.echo(f"A dry run on {choose(settings(), wanted)}", err=True)
    _check()
    logs.configure(settings(), service="faceapp-scaler")
    tracing.load("faceapp-scaler")
    run(settings(), dry_run=dry_run)


def _check_apart() -> None:
    """Do the same in a process of its own.

    boto3 must not be imported before gevent has patched `ssl` in a web process: each call of S3 would end in a
    RecursionError (gevent/gevent#1016).
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _check()
            status = 0
        except ConfigError as error:
            click.echo(f"Error: {error.detail}", err=True)
            status = 2
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(status)


def _check() -> None:
    """Raises ConfigError now, with its sentence, for what each part of the service would come to later."""
    from faceapp.config import aws

    settings()
    aws.region()
