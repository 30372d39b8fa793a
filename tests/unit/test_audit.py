"""The audit of dependencies: what it makes of pip-audit's answers, and of an index that has none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import REPOSITORY

pytestmark = pytest.mark.slow  # each starts pip-audit

FILES = ("requirements.in", "requirements-dev.in")

# The index, for pip-audit as it is: only what the network would have answered is made up.
INDEX = """
import json, re
import requests

ANSWERS = json.loads({answers!r})

def get(self, url, **_):
    name = re.search(r"/pypi/([^/]+)/[^/]+/json$", url)[1]
    answer = requests.Response()
    answer.url, answer.status_code = url, 200 if "*" in ANSWERS or name in ANSWERS else 404
    found = ANSWERS.get(name, ANSWERS.get("*"))
    answer._content = json.dumps({{"vulnerabilities": found}}).encode()
    return answer

requests.Session.get = get
"""


# An index without that data, and OSV.
OSV = """
import json
import requests

VULNERABLE = json.loads({vulnerable!r})

def answer(status, document):
    made = requests.Response()
    made.status_code, made._content = status, json.dumps(document).encode()
    return made

def post(self, url, data, **_):
    name = json.loads(data)["package"]["name"]
    return answer(200, {{"vulns": [VULNERABLE]}} if name == "jinja2" else {{}})

requests.Session.get = lambda self, url, **_: answer(404, {{}})
requests.Session.post = post
"""


def known(id: str, *mended: str) -> dict[str, object]:
    return {"id": id, "aliases": [], "summary": "bad", "fixed_in": list(mended), "withdrawn": None}


def audited(folder: Path, answers: dict[str, list[dict[str, object]]] | None, **environment: str) -> tuple[int, str]:
    """The exit status of the audit, and what it prints; `answers` are the index's, by package ("*": any other)."""
    if answers is not None:
        (folder / "sitecustomize.py").write_text(INDEX.format(answers=json.dumps(answers)))
    done = subprocess.run(
        [sys.executable, "tools/audit.py", *FILES],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_known_vulnerability_fails_the_check(tmp_path: Path) -> None:
    status, told = audited(tmp_path, {"*": [], "jinja2": [known("PYSEC-1-2", "99.1")], "pytest": [known("PYSEC-3")]})
    assert status == 1, told
    assert re.search(r"audit: jinja2 [\d.]+: PYSEC-1-2, mended in 99\.1", told)
    assert "PYSEC-3, mended in no version yet" in told
    assert "2 with known vulnerabilities" in told
    assert "not audited" not in told


def test_nothing_known_is_said_to_have_been_audited(tmp_path: Path) -> None:
    pins = {
        line.partition("==")[0].partition("[")[0].lower().replace("-", "_").replace(".", "_")
        for file in FILES
        for line in (REPOSITORY / file).read_text().splitlines()
        if "==" in line
    }
    status, told = audited(tmp_path, {"*": []})
    assert (status, told) == (0, f"audit: {len(pins)} packages audited, 0 with known vulnerabilities\n")


def test_a_package_that_the_index_does_not_know_is_named(tmp_path: Path) -> None:
    status, told = audited(tmp_path, {"werkzeug": [], "flask": []})
    assert status == 0
    assert "not audited: celery" in told
    assert "\naudit: 2 packages audited, 0 with known vulnerabilities\n" in told


@pytest.mark.parametrize("index", ["without that data", "that cannot be reached"])
def test_an_index_that_cannot_say_is_said_aloud_and_fails_nothing(tmp_path: Path, index: str) -> None:
    status, told = audited(
        tmp_path, {} if index == "without that data" else None, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY=""
    )
    assert status == 0
    assert told.startswith("audit: NOT MADE: ")
    assert len(told.splitlines()) == 1


def test_ci_is_red_when_the_audit_was_not_made_unless_it_says_that_it_cannot_be(tmp_path: Path) -> None:
    """S13: the audit passed in CI when it was not made."""
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "CI": "true"}
    status, told = audited(tmp_path, None, **nowhere)
    assert status == 1
    assert "audit: NOT MADE: " in told
    assert "AUDIT=offline" in told
    status, told = audited(tmp_path, None, **nowhere, AUDIT="offline")
    assert status == 0
    assert told.count("NOT MADE") == 2


def test_osv_is_asked_where_the_index_has_no_such_data(tmp_path: Path) -> None:
    """S13"""
    vulnerable = {"id": "GHSA-1", "aliases": [], "summary": "bad", "affected": []}
    (tmp_path / "sitecustomize.py").write_text(OSV.format(vulnerable=json.dumps(vulnerable)))
    status, told = audited(tmp_path, None)
    assert status == 1, told
    assert re.search(r"audit: jinja2 [\d.]+: GHSA-1, mended in no version yet", told, re.IGNORECASE)
    assert "1 with known vulnerabilities" in told
