"""Nothing that is read may run code: no message, answer, event, weights or gallery is unpickled, and no text run."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kombu import Message
from kombu.exceptions import ContentDisallowed
from kombu.serialization import prepare_accept_content

from celery_sqs.aws import Aws
from celery_sqs.results.collector import Collector
from faceapp import broker
from faceapp.config import Settings
from faceapp.deploy import template
from tests.support.services import REPOSITORY

RUNS_CODE = ("B102", "B301", "B302", "B307", "B506", "B614")
"""bandit's names of exec, pickle, marshal, eval, yaml's load and torch's load."""


class Trap:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path: Path) -> bytes:
    data = pickle.dumps(Trap(tmp_path / "sprung"))
    pickle.loads(data)
    (tmp_path / "sprung").unlink()  # It does.
    return data


def test_a_worker_takes_no_pickled_message(trap: bytes, tmp_path: Path) -> None:
    conf = broker.create_app(Settings()).conf
    assert list(conf.accept_content) == ["json"]
    message = Message(
        body=trap,
        content_type="application/x-python-serialize",
        content_encoding="binary",
        accept=prepare_accept_content(conf.accept_content),
    )
    with pytest.raises(ContentDisallowed):
        message.decode()
    assert not (tmp_path / "sprung").exists()


def test_whoever_waits_for_an_answer_takes_no_pickled_one(trap: bytes, tmp_path: Path) -> None:
    app = broker.create_app(Settings())
    assert set(app.backend.accept) == {"application/json"}
    assert app.conf.result_serializer == "json"
    collector = Collector(Aws(), "no-queue", wait_s=1)
    collector._deliver(trap.decode("latin1"), delivery=1)
    assert collector.counts == {"corrupt": 1}
    assert not (tmp_path / "sprung").exists()


def test_events_and_remote_control_are_json() -> None:
    app = broker.create_app(Settings())
    assert app.conf.event_serializer == "json"
    assert set(app.control.mailbox.accept) == {"json"}


def test_no_code_of_ours_unpickles_or_runs_a_text() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bandit", "--quiet", "--recursive", "--ignore-nosec", "--format", "json"),
            *("--tests", ",".join(RUNS_CODE), "faceapp", "tools"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    found = [(each["filename"], each["test_id"]) for each in json.loads(done.stdout)["results"]]
    # It calls everything but safe_load unsafe.
    assert found == [(template.__file__.removeprefix(f"{REPOSITORY}/"), "B506")]
    assert issubclass(template._Loader, yaml.SafeLoader)


def test_numpy_and_torch_are_told_not_to_unpickle() -> None:
    loads = {
        (ast.unparse(call.func), keyword.arg, ast.unparse(keyword.value))
        for path in (REPOSITORY / "faceapp").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"np.load", "numpy.load", "torch.load"}
        for keyword in call.keywords
    }
    assert {each for each in loads if each[1] in {"allow_pickle", "weights_only"}} == {
        ("np.load", "allow_pickle", "False"),
        ("torch.load", "weights_only", "True"),
    }
