"""The packages that are installed: each pinned, each with the hashes of its files, and so what builds them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.support.services import REPOSITORY
from tools import install_torch
from tools.lock import PLACES, normal, pins

LISTS = ("requirements", "requirements-dev", "requirements-checkov")
ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+(?:\[[^]]*\])?==[^ \n]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.MULTILINE
)


def entries(name: str) -> dict[str, int]:
    """How many hashes each pin of a file has."""
    text = (REPOSITORY / f"{name}.txt").read_text()
    rest = ENTRY.sub("", text)
    assert not [line for line in rest.splitlines() if line and not line.startswith(("#", "-r "))], "more than pins"
    return {each[1]: each[2].count("--hash") for each in ENTRY.finditer(text)}


@pytest.mark.parametrize("name", [*LISTS, "requirements-build", "requirements-cuda"])
def test_every_package_has_the_hashes_of_its_files(name: str) -> None:
    """S13"""
    found = entries(name)
    assert found
    assert not [pin for pin, hashes in found.items() if not hashes]


@pytest.mark.parametrize("name", LISTS)
def test_what_is_hashed_is_what_is_wanted(name: str) -> None:
    """S13: after a change of an .in file, tools/lock.py writes the .txt anew."""
    wanted = pins((REPOSITORY / f"{name}.in").read_text())
    found = {normal(pin.partition("==")[0].partition("[")[0]): pin.partition("==")[2] for pin in entries(name)}
    assert found == {each: line.partition("==")[2] for each, line in wanted.items()}


def test_the_build_backend_is_the_one_that_is_hashed() -> None:
    """S13: an isolated build fetches whatever backend is the newest."""
    [pin] = entries("requirements-build")
    assert tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"] == [pin]


def test_every_installation_is_from_a_list_with_hashes_or_from_this_checkout() -> None:
    """S13"""
    lines = [
        line for line in (REPOSITORY / "Makefile").read_text().splitlines() if re.search(r"pip install|INSTALL\)", line)
    ]
    assert len(lines) > 5
    for line in lines:
        assert re.search(r"^INSTALL :=|\$\(INSTALL\) (-r requirements[a-z-]*\.txt|--editable \.)", line), line
    script = (REPOSITORY / "deploy" / "image" / "provision.sh").read_text()
    for line in re.findall(r"^ .*pip install .*$", script, re.MULTILINE):
        assert re.search(r'--requirement "\$(build|torch|requirements|cuda_libraries)"|"\$sources"', line), line


def test_the_build_of_torch_that_is_there_stays(capfd: pytest.CaptureFixture[str]) -> None:
    """S13: this environment's may be another build than pip's own index has; nothing is fetched, nothing replaced."""
    before = metadata.version("torch")
    if not install_torch.cuda():
        install_torch.main()
        assert capfd.readouterr().out == ""
    assert metadata.version("torch") == before
    assert install_torch.installed("torch") == before.partition("+")[0]
    assert install_torch.installed("no-such-package") == ""


def test_both_are_found_with_their_hashes() -> None:
    """S13"""
    text = (REPOSITORY / "requirements.txt").read_text()
    found = {each[1]: each[0].count("--hash") for each in install_torch.ENTRY.finditer(text)}
    assert found.keys() == {"torch", "torchvision"}
    assert all(found.values())


def test_the_lists_are_complete_for_the_oldest_python_that_is_promised() -> None:
    """S13: a list for 3.11.9 had a package that asks for 3.11.5, and Debian 12 has 3.11.2."""
    promised = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert promised == ">=" + PLACES[0][0].removesuffix(".0")


def test_what_is_pinned_is_what_the_package_asks_for() -> None:
    """The ranges are the package's, for whoever installs it with other things; the pins are what was tried."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    ranges = {normal(found.name): found for each in asked if (found := Requirement(each)).name != project["name"]}
    wanted = (REPOSITORY / "requirements.in").read_text().partition("# What those bring along.")[0]
    own = {name: line.rpartition("==")[2] for name, line in pins(wanted).items()}
    assert ranges.keys() == own.keys()
    assert not [name for name, version in own.items() if version not in ranges[name].specifier]


def test_the_framework_alone_brings_no_model_and_no_web_framework() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {Requirement(each).name for each in project["dependencies"]} == {
        "boto3",
        "celery",
        "kombu",
        "pycurl",
        "urllib3",
    }
    code = "import sys, celery_sqs; print([each for each in ('flask', 'moto', 'torch', 'PIL') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
