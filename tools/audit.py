"""Known vulnerabilities in the pinned packages, as `make check` asks for them: `python tools/audit.py FILE...`.

pip-audit asks the package index about every pin, or OSV where the index has no such data. Its exit status is the same
for a vulnerability and for a source that could not be asked, and it passes over pins of which the source says nothing:
this tells the three apart. Where neither can be asked, a line says that nothing was audited. In CI (the variable CI is
set) that is a failure, unless AUDIT=offline says that no source can be reached from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IGNORED: dict[str, str] = {}
"""Vulnerabilities that pinned packages may have: their id, and why they do no harm here."""

_OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "10")
_SERVICES = ("pypi", "osv")
_PROBED = "Werkzeug"
_LONGEST_S = 300


class NotAsked(Exception):
    """pip-audit came to no verdict: why."""


def main(files: list[str]) -> int:
    """Audit the pins of requirements files. Returns 1 for a known vulnerability, else 0, and prints what was found."""
    reasons = []
    for service in _SERVICES:
        try:
            probe(files, service)
        except NotAsked as error:
            reasons.append(f"{service}: {error}")
            continue
        try:
            return verdict(ask(files, service))
        except NotAsked as error:
            print(f"audit: {error}", file=sys.stderr)
            return 1
    return _not_made("; ".join(reasons))


def probe(files: list[str], service: str) -> None:
    """Raises NotAsked when the service says nothing even of a package that every one of them knows."""
    with tempfile.TemporaryDirectory() as folder:
        pin = Path(folder) / "probe.txt"
        pin.write_text(_pin(files))
        (first,) = ask([str(pin)], service)
    if "skip_reason" in first:
        raise NotAsked(first["skip_reason"])


def ask(files: list[str], service: str) -> list[dict[str, Any]]:
    """What pip-audit says of every pin: `name` and either `version` and `vulns`, or `skip_reason`. Raises NotAsked."""
    command = [sys.executable, "-m", "pip_audit", *_OPTIONS, "--vulnerability-service", service]
    for each in IGNORED:
        command += ["--ignore-vuln", each]
    for file in files:
        command += ["--requirement", file]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired as error:
        raise NotAsked(f"pip-audit took longer than {_LONGEST_S} s") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotAsked((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]) from error
    return found


def verdict(found: list[dict[str, Any]]) -> int:
    """Print what was found in every pin. Returns 1 for a known vulnerability, else 0."""
    skipped = [each for each in found if "skip_reason" in each]
    for each in skipped:
        print(f"audit: not audited: {each['name']}: {each['skip_reason']}")
    vulnerable = [each for each in found if each.get("vulns")]
    for each in vulnerable:
        for known in each["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"audit: {each['name']} {each['version']}: {known['id']}, mended in {fixed}", file=sys.stderr)
    print(f"audit: {len(found) - len(skipped)} packages audited, {len(vulnerable)} with known vulnerabilities")
    return 1 if vulnerable else 0


def _pin(files: list[str]) -> str:
    """One pin that any index knows: whether it answers for this one tells whether it answers at all."""
    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    return next(line for line in lines if line.startswith(f"{_PROBED}=="))


def _not_made(why: str) -> int:
    """Say so. Returns 1 in CI, where a green run would be taken for an audit, unless AUDIT=offline allows it."""
    print(f"audit: NOT MADE: no source of known vulnerabilities answers here ({why})", file=sys.stderr)
    if not os.environ.get("CI"):
        return 0
    if os.environ.get("AUDIT") == "offline":
        print("audit: NOT MADE, and AUDIT=offline says that this is expected here", file=sys.stderr)
        return 0
    print("audit: CI fails without an audit: AUDIT=offline allows it where no source can be reached", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
