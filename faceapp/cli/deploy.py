"""The stack on AWS: plan, apply, look at, and destroy it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import click

OPTIONS_OF_PARAMETERS = {
    "worker_image": "WorkerImage",
    "web_image": "WebImage",
    "max_instances": "MaxInstances",
    "policy": "Policy",
    "mode": "Mode",
    "cidr": "AccessCidr",
    "port": "AccessPort",
    "keep_days": "KeepDays",
    "worker_type": "WorkerType",
    "worker_types": "WorkerTypes",
    "web_type": "WebType",
    "market": "WorkerMarket",
    "alarm_email": "AlarmEmail",
    "daily_instance_seconds": "DailyInstanceSeconds",
    "ship_logs": "ShipLogs",
}


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every deploy command; it gets the AWS that is meant as `target`."""

    @click.option(
        "--prefix", metavar="NAME", help="What every name begins with.  [default: FACEAPP_PREFIX, or faceapp]"
    )
    @click.option("--stack", metavar="NAME", help="The stack's name.  [default: FACEAPP_STACK, or the prefix]")
    @click.option("--region", metavar="REGION", help="AWS's region.  [default: as boto3 finds it]")
    @click.option("--endpoint-url", "endpoint", metavar="URL", help="Where AWS answers, such as an embedded one.")
    @wraps(command)
    def connected(
        *, prefix: str | None, stack: str | None, region: str | None, endpoint: str | None, **options: Any
    ) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        from faceapp.deploy.target import connect
        from faceapp.errors import DeployError

        try:
            command(target=connect(prefix=prefix, stack=stack, endpoint=endpoint, region=region), **options)
        except (BotoCoreError, ClientError) as error:
            raise DeployError(f"AWS refuses: {error}") from error

    return connected


def parameters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that become the template's parameters: the command gets those that were given as `wanted`."""

    @click.option("--image", metavar="AMI|latest", help="What web-instance and workers boot; latest: the newest made.")
    @click.option("--worker-image", metavar="AMI", help="What workers boot, where it is another.")
    @click.option("--web-image", metavar="AMI", help="What the web-instance boots, where it is another.")
    @click.option("--max-instances", metavar="N", type=click.IntRange(0, 1000), help="Never more workers than this.")
    @click.option("--policy", type=click.Choice(["work", "depth"]), help="The scaler's policy.")
    @click.option("--mode", type=click.Choice(["fast", "balanced", "eco"]), help="The policy work's mode.")
    @click.option("--cidr", metavar="CIDR", help="Who may reach the web tier, as an IPv4 range.")
    @click.option("--port", type=click.Choice(["443", "8000"]), help="443 is TLS, 8000 plain HTTP.")
    @click.option("--keep-days", metavar="N", type=click.IntRange(1, 3650), help="Photos and results are kept so long.")
    @click.option("--worker-type", metavar="TYPE", help="The workers' instance type.")
    @click.option("--worker-types", metavar="TYPE,...", help="More types, for when there is no capacity of that.")
    @click.option("--web-type", metavar="TYPE", help="The web-instance's type.")
    @click.option("--market", type=click.Choice(["on-demand", "spot"]), help="How workers are bought.")
    @click.option("--alarm-email", metavar="ADDRESS", help="Who is told of alarms.")
    @click.option("--daily-instance-seconds", metavar="N", type=click.IntRange(0), help="The workers' budget of a day.")
    @click.option("--ship-logs", type=click.Choice(["yes", "no"]), help="Whether logs go to CloudWatch.")
    @click.option(
        "--set", "settings", metavar="FACEAPP_X=VALUE", multiple=True, help="A setting; no VALUE: its default."
    )
    @click.option("--parameter", "more", metavar="NAME=VALUE", multiple=True, help="Another parameter of the template.")
    @wraps(command)
    def chosen(*, target: Any, image: str | None, settings: Any, more: Any, **options: Any) -> None:
        from faceapp.deploy import changes, choices, images

        given = {parameter: options.pop(name) for name, parameter in OPTIONS_OF_PARAMETERS.items()}
        asked = {name: None if value is None else str(value) for name, value in given.items()}
        if image:
            found = images.newest(target) if image == "latest" else image
            asked = {**asked, **{name: asked[name] or found for name in ("WorkerImage", "WebImage")}}
        asked |= choices.named(more)
        stack = changes.find_stack(target)
        changes.check_ours(stack, target)
        command(target=target, wanted=choices.wanted(asked, settings, changes.parameters_of(stack)), **options)

    return chosen


def yes(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--yes", is_flag=True, help="Do not ask first.")(command)


@click.group()
def deploy() -> None:
    """Put it on AWS: plan, apply, image, status, logs, open, destroy.

    The stack's name is the prefix. Every command says which account and region it works on, and those that change
    something ask first. With --endpoint-url http://127.0.0.1:4566 all of it runs against the embedded AWS.
    """


@deploy.command()
@on_target
@parameters
def plan(target: Any, wanted: dict[str, str]) -> None:
    """Show what 'apply' with the same options would change, and what it would cost. Changes nothing."""
    from faceapp.deploy import changes, cost, prices, show
    from faceapp.operations import tables

    found = changes.make(target, wanted)
    try:
        tables.console().print(show.plan(found, target, cost.estimate(found.after, prices.ask(target, found.after))))
    finally:
        changes.discard(target, found)


@deploy.command()
@on_target
@parameters
@yes
def apply(target: Any, wanted: dict[str, str], yes: bool) -> None:
    """Create the stack, or change it: shows the plan, asks, does it and says how it goes on.

    What is not named stays as the stack has it. When it fails, everything is as it was before.
    """
    from faceapp.deploy import changes, cost, prices, show
    from faceapp.deploy.apply import execute, outputs
    from faceapp.operations import tables

    check_somebody_answers(yes)
    console = tables.console()
    found = changes.make(target, wanted)
    try:
        console.print(show.plan(found, target, cost.estimate(found.after, prices.ask(target, found.after))))
        if found.nothing:
            return
        if not yes:
            click.confirm(f"Apply this to {target}?", abort=True)
    except BaseException:
        changes.discard(target, found)
        raise
    try:
        execute(target, found, tell=lambda event: console.print(show.event(event), soft_wrap=True))
    except KeyboardInterrupt:
        click.echo("CloudFormation goes on with it: 'faceapp deploy status' shows how far it is.", err=True)
        raise
    click.echo(f"The stack {target.stack} is as planned.")
    if url := outputs(target).get("Url"):
        click.echo(f"When the web-instance has booted: {url}  ('faceapp deploy open')")


@deploy.command()
@on_target
@yes
@click.option("--var", "variables", metavar="NAME=VALUE", multiple=True, help="A variable of deploy/image's template.")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="So many images stay afterwards.")
@click.option("--only-check", is_flag=True, help="Pack the sources and check the template; make no image.")
def image(target: Any, yes: bool, variables: tuple[str, ...], keep: int, only_check: bool) -> None:
    """Make an image (AMI) of this checkout with Packer, and delete old ones.

    It takes some minutes of an instance, which Packer ends. Images that the stack or an instance of its uses stay.
    """
    from faceapp.deploy import image, images

    if not only_check:
        if target.embedded:
            raise click.UsageError("Nothing boots at an embedded AWS, so no image can be made there: --only-check.")
        check_somebody_answers(yes)
    image.check_checkout()
    image.find_packer()
    click.echo(f"{target.prefix} on {target}")
    if not (only_check or yes):
        click.confirm("Start an instance there and make an image of it?", abort=True)
    made = image.make(target, variables, only_check=only_check, say=click.echo)
    if only_check:
        click.echo("The template is good, and the sources are packed.")
        return
    for each in images.prune(target, keep=keep):
        click.echo(f"deleted the old image {each.id} ({each.name})")
    click.echo(f"{made} is the new image: 'faceapp deploy apply --image {made}' takes it.")


@deploy.command()
@on_target
def status(target: Any) -> None:
    """Show the stack's state, addresses, instances, alarms and last events.

    The exit status is 1 when the stack is not as it should be or an alarm rings. 'faceapp status --aws' shows what the
    services do.
    """
    from faceapp.deploy import show
    from faceapp.deploy.status import ask
    from faceapp.operations import tables

    found = ask(target)
    tables.console().print(show.status(found, target), soft_wrap=True)
    if not found.healthy:
        sys.exit(1)


@deploy.command()
@click.argument(
    "unit", required=False, type=click.Choice(["web", "worker", "scaler", "flower", "nginx", "instance", "spot"])
)
@on_target
@click.option("--since", default="15m", show_default=True, metavar="TIME", help="How far back, as 90s, 15m, 2h or 7d.")
@click.option("--last", type=click.IntRange(1, 10_000), default=100, show_default=True, help="So many lines at most.")
@click.option("--follow", is_flag=True, help="Then show what comes, until Ctrl-C.")
def logs(target: Any, unit: str | None, since: str, last: int, follow: bool) -> None:
    """Show the services' logs, or one's, where --ship-logs yes sends them to CloudWatch."""
    from celery_sqs.texts import printable
    from faceapp.deploy import logs

    lines = logs.read(target, unit, since_s=logs.ago_s(since), last=last)
    for each in lines:
        click.echo(printable(str(each)))
    if not (lines or follow):
        click.echo(f"Nothing was logged in the last {since}: --since looks further back.", err=True)
    with suppress(KeyboardInterrupt):
        for each in logs.follow(target, unit, lines) if follow else ():
            click.echo(printable(str(each)))


@deploy.command("open")
@on_target
@click.option("--print", "only_print", is_flag=True, help="Open no browser.")
def open_page(target: Any, only_print: bool) -> None:
    """Print where the service is, and open it in a browser if there is one."""
    from faceapp.deploy.apply import outputs
    from faceapp.errors import DeployError

    url = outputs(target).get("Url")
    if not url:
        raise DeployError(
            f"There is no web-instance in {target.prefix} on {target}: 'faceapp deploy apply --image latest' makes it."
        )
    click.echo(url)
    display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if display and not only_print and sys.stdout.isatty():
        click.launch(url)


@deploy.command()
@on_target
@yes
@click.option("--with-gallery", is_flag=True, help="ALSO DELETE EVERYBODY WHO IS ENROLLED, FOR GOOD.")
@click.option("--with-images", is_flag=True, help="Also the AMIs that 'faceapp deploy image' made.")
def destroy(target: Any, yes: bool, with_gallery: bool, with_images: bool) -> None:
    """Delete the stack and all that it made: photos, results, waiting messages, instances. Asks for the prefix first.

    The gallery, the people who are enrolled, stays, and the next 'apply' takes it over. It can be run again when it was
    interrupted.
    """
    from faceapp.deploy import show
    from faceapp.deploy.destroy import destroy, take_stock
    from faceapp.operations import tables

    check_somebody_answers(yes)
    console = tables.console()
    found = take_stock(target)
    if found.nothing(with_gallery=with_gallery, with_images=with_images):
        click.echo(f"There is nothing of {target.prefix} on {target}.")
        return
    console.print(show.inventory(found, target, with_gallery=with_gallery, with_images=with_images))
    if not yes and click.prompt("Type the prefix to destroy it", default="", show_default=False) != target.prefix:
        raise click.ClickException("That is not the prefix: nothing was changed.")
    left = destroy(
        target,
        found,
        with_gallery=with_gallery,
        with_images=with_images,
        say=lambda sentence: click.echo(f"  {sentence}"),
        tell=lambda event: console.print(show.event(event), soft_wrap=True),
    )
    for each in left:
        click.echo(f"Left: {each}", err=True)
    if left:
        raise click.ClickException("Not everything is gone: run the same command again, or look at what is left.")
    click.echo(f"Nothing of {target.prefix} is left on {target}{show.kept(found, with_gallery, with_images)}.")


def check_somebody_answers(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("This asks first, and nobody can answer here: give --yes.")
