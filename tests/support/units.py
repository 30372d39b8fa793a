"""systemd's units as tests need them: what a unit says, and its command on this machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.services import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
UNITS = DEPLOY / "units"
COMMON = UNITS / "faceapp-.service.d" / "common.conf"
SERVICES = sorted(UNITS.glob("*.service"))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def entries(file: Path) -> list[tuple[str, str, str]]:
    """Section, key and value of each line; an empty value (it resets a list) included."""
    found, section = [], ""
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.append((section, key, value))
    return found


def values(name: str, key: str) -> list[str]:
    """A service's values for a key, of the common part, too."""
    return [value for file in (UNITS / name, COMMON) for _, each, value in entries(file) if each == key]


@dataclass(frozen=True)
class Instance:
    """An instance's folders, in a temporary one, and the programs that are there instead of its own."""

    folder: Path

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def here(self, text: str) -> str:
        """Paths of an instance as paths on this machine."""
        for theirs, ours in (
            ("/opt/faceapp/venv/bin/", f"{Path(sys.executable).parent}/"),
            ("/opt/faceapp/libexec/", f"{DEPLOY / 'libexec'}/"),
            ("/etc/faceapp", str(self.etc)),
            ("/run/faceapp", str(self.run)),
        ):
            text = text.replace(theirs, ours)
        return text

    def environ(self, name: str) -> dict[str, str]:
        """What systemd gives a service, which has nothing of this process's environment."""
        found = {"PATH": SYSTEM_PATH}
        for value in values(name, "Environment"):
            found |= dict(each.split("=", 1) for each in shlex.split(self.here(value)))
        for value in values(name, "EnvironmentFile"):
            lines = Path(self.here(value)).read_text("utf-8").splitlines()
            found |= dict(line.split("=", 1) for line in lines)
        return found

    def command(self, name: str, *, key: str = "ExecStart") -> list[str]:
        """A service's command, its variables filled in as systemd does."""
        [line] = values(name, key)
        environ = self.environ(name)
        words = shlex.split(self.here(line))
        return [re.sub(r"\$\{(\w+)\}", lambda found: environ.get(found[1], ""), word) for word in words]

    def once(self, name: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a service that ends by itself."""
        return subprocess.run(
            self.command(name),
            env={**self.environ(name), **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
        )

    @contextmanager
    def service(self, name: str, **more: str) -> Iterator[Running]:
        """Run a service until the block ends; what it writes is in `log`."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(name),
                env={**self.environ(name), **more},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Running(process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass(frozen=True)
class Running:
    """A service that was started."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def stop(self, signal: int) -> int:
        """Tell the main process, as KillMode=mixed does, and wait for the status."""
        self.process.send_signal(signal)
        return self.process.wait(240)


def plain(variables: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in variables.items())
