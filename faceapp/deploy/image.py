"""An image (AMI) out of this checkout, with Packer."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from faceapp import __version__
from faceapp.deploy import images
from faceapp.deploy.target import Target
from faceapp.errors import ConfigError, DeployError

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("celery_sqs", "faceapp", "pyproject.toml", "README.md", "LICENSE")
OLDEST = (1, 7, 0)
"""Older versions have no `packer init`, and the Amazon plugin that is built into them does not know the template."""
HOW = "Packer's own page, developer.hashicorp.com/packer, says how to get it."


def find_packer() -> str:
    """The packer command. Raises ConfigError, with how to get it, when there is none or it is too old."""
    path = shutil.which("packer")
    if not path:
        raise ConfigError(f"There is no packer here, which makes the image. {HOW}")
    done = subprocess.run([path, "version"], capture_output=True, text=True, check=False)
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if not found:
        raise ConfigError(f"{path} is not HashiCorp's packer: it does not say which version it is. {HOW}")
    if tuple(map(int, found.groups())) < OLDEST:
        raise ConfigError(f"{path} is {found[0]}, and the image's template needs 1.7 or newer. {HOW}")
    return path


def check_checkout(root: Path = CHECKOUT) -> Path:
    """The checkout's root. Raises ConfigError when this faceapp was installed without one."""
    if not (root / "deploy" / "image" / "faceapp.pkr.hcl").is_file():
        raise ConfigError("An image is made from a checkout: clone the repository, and run this command there.")
    return root


def pack(folder: Path, *, root: Path = CHECKOUT) -> Path:
    """The checkout's sources as an archive in `folder`, which the image's own pip builds and installs.

    Nothing is in it that an older build has left. Raises DeployError when a file cannot be read.
    """
    name = f"faceapp-{__version__}"
    archive = folder / f"{name}.tar.gz"
    try:
        # The stack's template is a link in the checkout, and a file in the package.
        with tarfile.open(archive, "w:gz", dereference=True) as opened:
            for each in SOURCES:
                opened.add(root / each, f"{name}/{each}", filter=_without_caches)
    except OSError as error:
        raise DeployError(f"The sources cannot be packed: {error}") from error
    return archive


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(member.name).name == "__pycache__" else member


def variables(target: Target, sources: Path, given: Sequence[str]) -> list[str]:
    """Packer's options. `given` are NAME=VALUE. Raises ConfigError."""
    found = {"region": target.region, "version": __version__, "sources": str(sources), "stack": target.prefix}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--var {each} is no variable: it takes NAME=VALUE")
        found[name] = value
    return [part for name, value in found.items() for part in ("-var", f"{name}={value}")]


def make(target: Target, given: Sequence[str], *, only_check: bool, say: Callable[[str], None]) -> str:
    """Make the image, with Packer's output as it comes, and answer its id; with `only_check` the id is empty.

    Raises ConfigError and DeployError. Packer takes back what it began when it fails or is interrupted.
    """
    root, packer = check_checkout(), find_packer()
    template = str(root / "deploy" / "image")
    before = {each.id for each in images.own(target)}
    with tempfile.TemporaryDirectory(prefix="faceapp-image-") as folder:
        say("packing the sources")
        options = variables(target, pack(Path(folder), root=root), given)
        say("checking the template")
        _run(packer, "init", template)
        _run(packer, "validate", *options, template)
        if only_check:
            return ""
        _run(packer, "build", *options, template)
    made = [each.id for each in images.own(target) if each.id not in before]
    if not made:
        raise DeployError("Packer ended well, and there is no new image with the stack's tag.")
    return made[0]


def _run(packer: str, *arguments: str) -> None:
    status = subprocess.run([packer, *arguments], check=False, stdin=subprocess.DEVNULL).returncode
    if status:
        raise DeployError(f"packer {arguments[0]} ended with status {status}: what it said is above.")
