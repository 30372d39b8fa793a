"""deploy/README.md and README.md: what they name is there, under that name and with that value."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
import tornado.options
import yaml

from faceapp.cli import main
from faceapp.config import Settings
from faceapp.deploy import changes, cost, template
from faceapp.deploy.prices import KNOWN_SINCE, Prices
from tests.support.services import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
RUNBOOK = DEPLOY / "README.md"
DOCUMENTS = [RUNBOOK, REPOSITORY / "README.md"]
FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)]+)\)")
SETTINGS = {f"FACEAPP_{each.name.upper()}" for each in fields(Settings)}
QUOTED = {
    "faceapp": (
        "AWS does not let us in",
        "No AWS region is set",
        "There is no image of",
        "No logs are shipped",
        "has no tag faceapp:tier",
        "and the image's template needs 1.7",
    ),
    "deploy": ("torch's build is for CUDA",),
}
"""What the runbook quotes of what the programs say, by where that is."""


def typed(text: str) -> list[str]:
    """The lines of the blocks, those that go on in the next one joined."""
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in blocks.splitlines()]


def spans(text: str) -> list[str]:
    """What is set as code in a sentence or a table."""
    return [" ".join(each.split()) for each in SPAN.findall(FENCE.sub("", text))]


def section(title: str, text: str | None = None) -> str:
    """What is under a heading of the runbook, up to the next one of its level."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text or RUNBOOK.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables' rows, without their headings."""
    lines = re.sub(r"^\|.*\n\|[| :-]+$", "", text, flags=re.MULTILINE).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]


def parse(arguments: list[str]) -> None:
    """As click does before a command runs, and no further. Raises its errors."""
    command: click.Command = main
    context: click.Context | None = None
    name = "faceapp"
    while True:
        if isinstance(command, click.Group) and not arguments:
            return
        context = command.make_context(name, [*arguments], parent=context)
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args]
        found, subcommand, arguments = command.resolve_command(context, rest)
        assert found is not None
        assert subcommand is not None
        name, command = found, subcommand


def commands(group: click.Group = main) -> Iterator[click.Command]:
    for each in group.commands.values():
        yield each
        if isinstance(each, click.Group):
            yield from commands(each)


def of_faceapp(line: str) -> list[str] | None:
    """The arguments of a line that runs faceapp; None for any other."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words[1:] if words and words[0] == "faceapp" else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.parent.name)
def test_every_command_that_is_to_be_typed_is_one(document: Path) -> None:
    found = [(line, of_faceapp(line)) for line in typed(document.read_text()) if "faceapp" in line]
    lines = [(line, arguments) for line, arguments in found if arguments is not None]
    assert len(lines) >= 3
    for line, arguments in lines:
        try:
            parse(arguments)
        except click.ClickException as error:
            pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.parent.name)
def test_every_command_and_option_in_a_sentence_is_there(document: Path) -> None:
    options = {name for each in commands() for option in each.params for name in option.opts}
    importlib.import_module("flower.options")
    options |= {f"--{name.replace('_', '-')}" for name in tornado.options.options}
    found = spans(document.read_text())
    assert len(found) > 50
    for span in found:
        if span.startswith("--"):
            assert span.split()[0].partition("=")[0] in options, span
        elif (arguments := of_faceapp(span.replace("'", ""))) is not None:
            try:
                parse(arguments)
            except (click.MissingParameter, click.BadOptionUsage):
                pass  # named, not to be typed as it stands
            except click.ClickException as error:
                pytest.fail(f"{span}: {error.format_message()}")


def test_a_command_that_is_not_there_is_found() -> None:
    for line in ("faceapp deploy make", "faceapp deploy apply --sidr 1.2.3.4/32", "X=y faceapp status --policy depth"):
        arguments = of_faceapp(line)
        assert arguments
        with pytest.raises(click.UsageError):
            parse(arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.parent.name)
def test_every_setting_file_and_module_is_there(document: Path) -> None:
    text = document.read_text()
    assert set(re.findall(r"\bFACEAPP_[A-Z_]*[A-Z]\b", text)) <= SETTINGS
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link
    for span in spans(text):
        if re.fullmatch(r"(deploy|docs|tests|faceapp)/[\w./-]*", span):
            assert (REPOSITORY / span).exists(), span
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    targets = set(re.findall(r"^(\S+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    typed_or_named = [*typed(text), *spans(text)]
    assert {each.split()[1] for each in typed_or_named if re.match(r"make [a-z]", each)} <= targets


def test_variables_parameters_and_units_are_there() -> None:
    text = RUNBOOK.read_text()
    variables = set(re.findall(r'^variable "(\w+)"', (DEPLOY / "image" / "faceapp.pkr.hcl").read_text(), re.MULTILINE))
    named = set(re.findall(r"--var\s+(\w+)=", text))
    assert len(named) >= 4
    assert named <= variables
    assert set(re.findall(r"--parameter\s+(\w+)=", text)) <= set(template.parameters())
    units = {each.stem for each in (DEPLOY / "units").glob("*.service")}
    units |= {each.name for each in (DEPLOY / "units").glob("*.target")}
    found = {each for each in spans(section("Boot path")) if re.fullmatch(r"faceapp-[a-z]+(\.target)?", each)}
    assert len(found) >= 10
    assert found == units


def test_every_parameter_of_the_stack_is_there_with_its_default() -> None:
    defaults = template.parameters()
    found: dict[str, str] = {}
    for names, _option, default, _what in rows(section("Settings and parameters")):
        values = [{"none": ""}.get(each, each) for each in default.replace("`", "").split(", ")]
        parameters = SPAN.findall(names)
        if default == "the default VPC" or (len(values) == 1 and not values[0]):
            values = [""] * len(parameters)
        found.update(zip(parameters, values, strict=True))
    assert found == defaults


def test_every_parameter_of_several_web_instances_is_there() -> None:
    text = (DEPLOY / "balanced.yaml").read_text()
    parameters = set(re.findall(r"^  (\w+):$", text.partition("Parameters:\n")[2].partition("\nConditions")[0], re.M))
    assert len(parameters) > 10
    missing = {each for each in parameters if not re.search(rf"\b{each}\b", section("More than one web instance"))}
    assert not missing


def test_every_alarm_and_every_alert_has_its_entry() -> None:
    entries = {span for cells in rows(section("Alarms")) if all(cells) for span in SPAN.findall(cells[0])}
    alarms = {
        each["Properties"]["AlarmName"].replace("${Prefix}", "<prefix>")
        for each in template.resources().values()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    }
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert len(alarms) >= 4
    assert len(alerts) > 10
    assert entries == alarms | alerts


def test_every_role_has_its_entry() -> None:
    roles = {
        each["Properties"]["RoleName"].replace("${Prefix}", "<prefix>")
        for each in template.resources().values()
        if each["Type"] == "AWS::IAM::Role"
    }
    assert {span for cells in rows(section("Roles")) for span in SPAN.findall(cells[0])} == roles


def test_the_costs_are_those_that_plan_prints() -> None:
    text = section("Cost")
    whole = {**template.parameters(), "WebImage": "ami-1", "WorkerImage": "ami-1"}
    for label, parameters in {
        "defaults": {},
        "course profile": {"Policy": "depth", "AccessPort": "8000"},
        "--max-instances 1": {"MaxInstances": "1"},
        "--market spot": {"WorkerMarket": "spot"},
    }.items():
        found = cost.estimate({**whole, **parameters}, Prices())
        [cells] = [each for each in rows(text) if label in each[0]]
        totals = [cost.total(each) for each in (found.idle_month, found.thousand_photos, found.busy_hour)]
        assert [float(each) for each in cells[1:]] == [
            pytest.approx(total, abs=0.005 if total >= 0.1 else 0.0001) for total in totals
        ], label
    assert KNOWN_SINCE in text


def test_what_is_kept_goes_when_the_template_says() -> None:
    resources = template.resources()
    goes = {
        re.sub(r"[`,].*", "", where[1:]): when for _what, where, when in rows(section("Removing a photo or a person"))
    }
    for name, words in (("RequestQueue", "4 days"), ("ResponseQueue", "an hour"), ("DeadLetterQueue", "14 days")):
        properties = resources[name]["Properties"]
        seconds = {"4 days": 345_600, "an hour": 3600, "14 days": 1_209_600}[words]
        assert properties["MessageRetentionPeriod"] == seconds
        assert words in goes[properties["QueueName"].replace("${Prefix}", "<prefix>")]


def test_states_and_sentences_are_those_of_the_programs() -> None:
    text = section("Troubleshooting")
    assert all(f"`{state}`" in text for state in changes.NEVER_UPDATED)
    for place, sentences in QUOTED.items():
        rooms = [place, "celery_sqs"] if place == "faceapp" else [place]
        files = [each for room in rooms for each in (REPOSITORY / room).rglob("*") if each.suffix in (".py", ".sh")]
        said = " ".join(re.sub(r'"\s*\n\s*f?"', "", each.read_text()) for each in files)
        for sentence in sentences:
            assert sentence in text
            assert sentence in said
