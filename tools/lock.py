"""Hashes for every pin: `python tools/lock.py` writes requirements*.txt anew from requirements*.in.

The .in files name each package that is installed, what others bring along included, so pip resolves nothing. For each
pin uv asks the package index for the hashes of all of its files, of every platform and Python. Run it after a change of
an .in file, with what `make check` installs; it needs the network.

requirements-cuda.txt has what torch's CUDA build for Linux needs besides; it is installed only with such a build.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ("setuptools",)
"""What builds packages that come as source, and our own. It is installed before the others."""
OTHER_BUILDS = {
    # torch's CPU build for CPython 3.11 on Linux x86-64, from the index of CPU builds that PyTorch's site names.
    "torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
"""SHA-256 of files that the package index does not have, and that are as good."""
PLACES = (
    # Debian 12 has 3.11.2, and a package may ask for a later one of the same minor version.
    ("3.11.0", "x86_64-manylinux_2_28"),
    ("3.12", "x86_64-manylinux_2_28"),
    ("3.13", "x86_64-manylinux_2_28"),
    ("3.13", "aarch64-manylinux_2_28"),
    ("3.13", "aarch64-apple-darwin"),
)
"""Pythons and platforms on which the lists must be complete."""
HEAD = "# Made by tools/lock.py from {source}: change that, and run it again.\n"
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>\S+)")


def main() -> int:
    """Write all of them. Returns 1 when an .in file lacks a package that another one brings along."""
    for name in ("requirements", "requirements-dev", "requirements-checkov"):
        source = ROOT / f"{name}.in"
        (ROOT / f"{name}.txt").write_text(HEAD.format(source=source.name) + with_hashes(source))
    runs = pins((ROOT / "requirements.in").read_text())
    build = [runs[name] for name in BUILD]
    (ROOT / "requirements-build.txt").write_text(HEAD.format(source="requirements.in") + hashed("\n".join(build)))
    cuda = {name: line for name, line in needed([ROOT / "requirements.in"]).items() if is_cuda(name)}
    text = HEAD.format(source="requirements.in") + hashed("\n".join(sorted(cuda.values())))
    (ROOT / "requirements-cuda.txt").write_text(text)
    lacking = set[str]()
    for sources in (["requirements.in", "requirements-dev.in"], ["requirements-checkov.in"]):
        files = [ROOT / each for each in sources]
        listed = {name for each in files for name in pins(each.read_text())}
        lacking |= {line for name, line in needed(files).items() if name not in listed and not is_no_pin(name)}
    for each in sorted(lacking):
        print(f"lock: {each} is needed on some Python or platform, and no .in file names it", file=sys.stderr)
    return 1 if lacking else 0


def pins(text: str) -> dict[str, str]:
    """The pins of a file, by normalised name."""
    lines = (line.partition(" ")[0].strip() for line in text.splitlines())
    return {normal(found["name"]): line for line in lines if (found := PIN.fullmatch(line))}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def is_no_pin(name: str) -> bool:
    """pip is what installs; torch's CUDA build has a list of its own."""
    return name == "pip" or is_cuda(name)


def is_cuda(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def with_hashes(source: Path) -> str:
    """The file's own pins with their hashes; the files that it names by -r stay named, as .txt."""
    lines = source.read_text().splitlines()
    others = [line.replace(".in", ".txt") for line in lines if line.startswith("-r ")]
    return "".join(f"{each}\n" for each in others) + hashed("\n".join(line for line in lines if "==" in line))


def hashed(text: str) -> str:
    """Pins with the hashes of all of their files."""
    found = compiled(text, "--no-deps", "--generate-hashes", "--no-strip-extras", "--no-annotate")
    for pin, hashes in OTHER_BUILDS.items():
        more = "".join(f" \\\n    --hash=sha256:{each}" for each in hashes)
        entry = re.compile(rf"^{re.escape(pin)}(?: \\\n    --hash=\S+)+$", re.MULTILINE)
        found = entry.sub(lambda match, more=more: match[0] + more, found)  # type: ignore[misc]
    return found


def needed(sources: list[Path]) -> dict[str, str]:
    """Every pin that these files come to with all that they bring along, on each Python and platform."""
    text = "\n".join(line for each in sources for line in each.read_text().splitlines() if "==" in line)
    found: dict[str, str] = {}
    for python, platform in PLACES:
        found |= pins(compiled(text, "--no-annotate", "--python-version", python, "--python-platform", platform))
    return found


def compiled(text: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pins.in"
        source.write_text(text)
        command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--no-header", "--quiet"]
        # torch has wheels for this macOS and newer ones.
        environ = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        done = subprocess.run(
            [*command, *options, str(source)], check=True, stdout=subprocess.PIPE, text=True, env=environ
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
