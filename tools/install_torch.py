"""torch and torchvision, of whichever build pip would take here, checked by their hashes: `make` calls it.

pip must not choose with the hashes at hand: it would pass over a build of torch that lies on this machine, or on an
index without hashes, such as one for the CPU, and fetch the build with CUDA and its gigabytes. So it chooses and
downloads, and what it has downloaded is installed by its hash. What is installed already stays, whatever build of the
pinned version it is. A build with CUDA gets what it needs besides from requirements-cuda.txt.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(r"^(torch|torchvision)==(\S+)(?: \\\n    --hash=\S+)+$", re.MULTILINE)


def main() -> None:
    entries = {each[1]: each for each in ENTRY.finditer((ROOT / "requirements.txt").read_text())}
    missing = [each for name, each in entries.items() if installed(name) != each[2]]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            pip("download", "--dest", folder, *(f"{each[1]}=={each[2]}" for each in missing))
            listed = Path(folder) / "torch.txt"
            listed.write_text("".join(f"{each[0]}\n" for each in missing))
            pip("install", "--no-index", "--find-links", folder, "--requirement", str(listed))
    if cuda():
        print("torch's build is for CUDA: installing what it needs besides")
        pip("install", "--requirement", str(ROOT / "requirements-cuda.txt"))


def installed(name: str) -> str:
    """The installed version without the name of its build; empty when there is none."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def cuda() -> str:
    """CUDA's version, empty for a build without it; torch itself is not imported, which may lack its libraries yet."""
    importlib.invalidate_caches()
    found = importlib.util.find_spec("torch")
    assert found, "it was installed just now"
    assert found.origin
    return runpy.run_path(str(Path(found.origin).parent / "version.py"))["cuda"] or ""


def pip(command: str, *options: str) -> None:
    common = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([sys.executable, "-m", "pip", command, *common, *options])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
