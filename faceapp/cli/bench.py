"""Load for a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faceapp.cli.common import FOLDER, URL


@click.group()
def bench() -> None:
    """Measure a running service."""


@bench.command()
@click.argument("url", default=URL["default"])
@click.option("--images", required=True, type=FOLDER, metavar="DIR", help="<name><number>.jpg or <name>/<photo>.jpg.")
@click.option(
    "--concurrency", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Requests at once."
)
@click.option("--photos", type=click.IntRange(1, 1_000_000), help="How many to post.  [default: --concurrency]")
@click.option("--api", type=click.Choice(["classic", "v1", "both"]), default="classic", show_default=True)
@click.option("--timeout", type=click.FloatRange(0.1), default=300, show_default=True, help="Seconds for one answer.")
@click.option("--limit", type=click.FloatRange(0.1), default=1800, show_default=True, help="Seconds for a run.")
@click.option("--failures", type=click.IntRange(1), default=100, show_default=True, help="So many, and it stops.")
@click.option("--retry", is_flag=True, help="Come again when told so (503), after Retry-After.")
@click.option("--key", help="The API key to send.  [default: FACEAPP_API_KEY, or that of 'faceapp up' at URL]")
@click.option("--plot", type=FOLDER, metavar="FILE.png", help="Draw the last run into this file.")
@click.option("--json", "json_file", type=FOLDER, metavar="FILE", help="Write the numbers into this file.")
def load(url: str, images: Path, concurrency: int, photos: int | None, key: str | None, **options: Any) -> None:
    """Post many photos at once to URL, and check every answer.

    Each photo has a file name of its own, so an answer that belongs to another request shows (crossed), and so does one
    id in two answers (doubled). The right name is the photo's folder or its file name without the number, for people
    who are enrolled; of others only the file name is checked (unchecked). Lost is what got no answer in time.

    Where the time went, as shares of all photos' time to answer: computing is a result's total_s; booting is the part
    of its queued_s during which the scaler (asked once a second) had no instance ready; queueing the rest of queued_s;
    and the rest is uploading, storing and the answer's way back. Memory and open files are the web tier's, when it
    is on this machine.

    Ctrl-C shows what came until then. The exit status is 1 unless every photo got its own, right answer.
    """
    from faceapp.bench.command import Command, run
    from faceapp.security.credential import key_for

    key = key_for(url) if key is None else key
    if not run(
        Command(url=url, images=images, concurrency=concurrency, photos=photos or concurrency, key=key, **options)
    ):
        raise click.exceptions.Exit(1)
