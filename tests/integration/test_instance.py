"""What an instance makes of its metadata, against a little metadata service and a systemctl that writes down."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faceapp.errors import DeployError
from faceapp.stack import instance
from tests.support.imds import Service, metadata_service
from tests.support.services import PATIENCE_S, wait_until


@pytest.fixture
def imds() -> Iterator[Service]:
    with metadata_service() as service:
        yield service


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what systemctl was called with."""
    said = tmp_path / "systemctl.log"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    program.chmod(0o755)
    said.touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return said


def run(imds: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url, "FACEAPP_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "faceapp.stack.instance", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)


def test_an_instance_writes_down_what_it_is_and_starts_its_tier(imds: Service, commands: Path, tmp_path: Path) -> None:
    imds.answers |= {"public-ipv4": "203.0.113.7", "local-ipv4": "10.0.0.7"}
    file = tmp_path / "instance.env"
    done = run(imds, "identify", "--file", str(file))
    assert done.returncode == 0, done.stderr
    assert file.read_text().splitlines() == [
        "INSTANCE_ID=i-0123456789abcdef0",
        "INSTANCE_NAME=app-tier-instance-3",
        "INSTANCE_TIER=app",
        "AWS_REGION=us-east-1",
        "AWS_DEFAULT_REGION=us-east-1",
        "PUBLIC_NAME=",
        "PUBLIC_ADDRESS=203.0.113.7",
        "PRIVATE_ADDRESS=10.0.0.7",
    ]
    assert commands.read_text() == "start --no-block faceapp-app.target\n"


def test_the_web_instance_starts_the_web_tier(imds: Service, commands: Path, tmp_path: Path) -> None:
    imds.answers |= {"tags/instance/Name": "web-instance", "tags/instance/faceapp:tier": "web"}
    assert run(imds, "identify", "--file", str(tmp_path / "instance.env")).returncode == 0
    assert commands.read_text() == "start --no-block faceapp-web.target\n"


def test_an_instance_of_no_tier_starts_nothing(imds: Service, commands: Path, tmp_path: Path) -> None:
    imds.answers["tags/instance/faceapp:tier"] = "tea"
    done = run(imds, "identify", "--file", str(tmp_path / "instance.env"))
    assert done.returncode == 1
    assert "'tea': it is app or web" in done.stderr
    assert not commands.read_text()


def test_a_systemd_that_refuses_is_a_failure(imds: Service, commands: Path, tmp_path: Path) -> None:
    program = commands.parent / "bin" / "systemctl"
    program.write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 4\n")
    done = run(imds, "identify", "--file", str(tmp_path / "instance.env"))
    assert done.returncode == 1
    assert "'systemctl start --no-block faceapp-app.target' failed: Access denied" in done.stderr


def test_the_name_may_come_after_the_instance(imds: Service) -> None:
    name = imds.answers.pop("tags/instance/Name")

    def give_name() -> None:
        wait_until(lambda: any(each.endswith("/Name") for each in imds.asked), what="the question for the name")
        imds.answers["tags/instance/Name"] = name

    giver = threading.Thread(target=give_name)
    giver.start()
    assert instance.identify(instance.Metadata(imds.url))["INSTANCE_NAME"] == "app-tier-instance-3"
    giver.join()


def test_an_instance_without_a_name_goes_by_its_id(imds: Service) -> None:
    del imds.answers["tags/instance/Name"]
    found = instance.identify(instance.Metadata(imds.url), within_s=0)
    assert found["INSTANCE_NAME"] == "i-0123456789abcdef0"


def test_without_tags_in_the_metadata_nothing_is_guessed(imds: Service) -> None:
    del imds.answers["tags/instance/faceapp:tier"]
    with pytest.raises(DeployError, match=r"no tag faceapp:tier, or its tags are not allowed in its metadata"):
        instance.identify(instance.Metadata(imds.url), within_s=0)


def test_a_name_that_would_be_more_than_a_value_is_refused(imds: Service) -> None:
    imds.answers["tags/instance/Name"] = "web-instance\nAWS_ENDPOINT_URL=http://192.0.2.1"
    with pytest.raises(DeployError, match=r"INSTANCE_NAME would be"):
        instance.identify(instance.Metadata(imds.url))


def test_a_service_that_is_not_up_is_waited_for_and_then_an_error() -> None:
    with pytest.raises(DeployError, match=r"does not answer"):
        instance.identify(instance.Metadata("http://127.0.0.1:9"), within_s=0)


def test_a_token_that_ran_out_is_replaced(imds: Service) -> None:
    metadata = instance.Metadata(imds.url)
    assert metadata.get("instance-id") == "i-0123456789abcdef0"
    imds.tokens.clear()
    assert metadata.get("instance-id") == "i-0123456789abcdef0"
    assert imds.asked.count("/latest/api/token") == 2


def test_a_notice_stops_the_worker_once(imds: Service, commands: Path) -> None:
    imds.answers["instance-life-cycle"] = "spot"
    watcher = threading.Thread(
        target=instance.watch,
        args=[instance.Metadata(imds.url), "faceapp-worker.service"],
        kwargs={"every_s": 0.01},
    )
    watcher.start()
    path = "/latest/meta-data/spot/instance-action"
    # A recommendation comes to nothing, and so does a service that is away for a moment.
    imds.answers["events/recommendations/rebalance"] = '{"noticeTime": "2026-11-22T08:00:00Z"}'
    wait_until(lambda: imds.asked.count(path) > 3, what="a few questions for the notice")
    imds.failing = True
    seen = len(imds.asked)
    wait_until(lambda: len(imds.asked) > seen + 3, what="questions that fail")
    assert not commands.read_text()
    imds.failing = False
    imds.answers["spot/instance-action"] = '{"action": "terminate", "time": "2026-11-22T08:22:00Z"}'
    watcher.join(PATIENCE_S)
    assert not watcher.is_alive()
    assert commands.read_text() == "stop --no-block faceapp-worker.service\n"


def test_an_instance_that_nobody_takes_back_does_not_watch(imds: Service, commands: Path) -> None:
    done = run(imds, "watch", "--stop", "faceapp-worker.service")
    assert done.returncode == 0
    assert "/latest/meta-data/spot/instance-action" not in imds.asked
    assert not commands.read_text()
