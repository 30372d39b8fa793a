"""`faceapp up` as a user runs it: real processes, a real photo, and nothing left at the end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from faceapp.config import Settings
from faceapp.errors import LocalError
from faceapp.local import compute, up
from faceapp.local.processes import Services
from faceapp.local.progress import Progress
from faceapp.operations.client import Client
from faceapp.scaler import LEASE_KEY
from faceapp.schema import REQUEST_ID
from faceapp.security import credential
from tests.integration.test_cli import faceapp
from tests.support.aws import session
from tests.support.services import PATIENCE_S, free_ports, users_environ, wait_until

READY = "Ctrl-C stops everything."


def command_of(pid: int) -> str:
    """A process's command line; empty when it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Running:
    """A `faceapp up` that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, settings: Settings) -> None:
        self.process, self.log, self.settings = process, log, settings
        # As a command finds it, in the folder that only this test knows.
        self.key = json.loads((log.parent / "faceapp" / settings.prefix / credential.START).read_text())["key"]
        self.client = Client(f"http://127.0.0.1:{settings.web_port}", key=self.key)
        self.left = descendants(process.pid)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def services(self) -> dict[str, int]:
        """The process ids of what it has started, by their modules or commands."""
        commands = {pid: command_of(pid) for pid in children(self.process.pid)}
        return {
            word: pid
            for word in ("compute", "scaler", "web", "aws", "flower", "reaper")
            for pid, line in commands.items()
            if any(argument in (word, f"faceapp.local.{word}") for argument in line.split("\0"))
        }

    def aws(self, service: str) -> Any:
        """A client of its embedded AWS."""
        aws = session(credential.aws_keys(self.key))
        return aws.client(service, endpoint_url=up.endpoint(self.settings))

    def ended(self) -> int:
        """Its status, once it and everything that it had started are gone."""
        status = self.process.wait(PATIENCE_S)
        wait_until(lambda: not [pid for pid in self.left if alive(pid)], what="the end of every process")
        return status


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def running(
    folder: Path, *options: str | Path, prefix: str = "test-up", more: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`faceapp up`, on free ports, with its state in `folder`; killed at the end if it still runs."""
    web_port, aws_port, scaler_port, flower_port = free_ports(4)
    settings = {
        # A course's ID is the prefix by itself.
        "FACEAPP_PREFIX": "" if "--course" in options else prefix,
        "FACEAPP_WEB_PORT": str(web_port),
        "FACEAPP_AWS_PORT": str(aws_port),
        "FACEAPP_SCALER_PORT": str(scaler_port),
        "FACEAPP_FLOWER_PORT": str(flower_port),
        "FACEAPP_LOCAL_BOOT_MIN_S": "0",
        "FACEAPP_LOCAL_BOOT_MAX_S": "0",
        **(more or {}),
    }
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "faceapp", "up", *map(str, options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            # A user's own AWS must never be reached from here.
            env=users_environ(**settings, XDG_STATE_HOME=str(folder), AWS_PROFILE="the-users-own"),
        )
    try:
        wait_until(
            lambda: process.poll() is not None or READY in log.read_text(), timeout_s=2 * PATIENCE_S, what="faceapp up"
        )
        assert process.poll() is None, log.read_text()
        yield Running(process, log, Settings.from_environ({**settings, "FACEAPP_PREFIX": prefix}))
    finally:
        process.kill()
        process.wait()


@pytest.mark.system
def test_from_a_folder_of_photos_to_names_and_back_after_a_restart(samples: dict[str, Path], tmp_path: Path) -> None:
    people = tmp_path / "people"
    for name, photo in (("barack", "obama.jpg"), ("joe", "biden.jpg")):
        (people / name).mkdir(parents=True)
        shutil.copy(samples[photo], people / name)
    (people / "joe" / "broken.jpg").write_text("no photo")

    with running(tmp_path, "--people", people) as first:
        assert first.client.recognise(samples["obama3.jpg"]) == "obama3:barack"
        assert up.answers(f"{up.flower_url(first.settings)}/healthcheck")
        assert f"Flower     {up.flower_url(first.settings)}/?key={first.key}\n" in first.output
        assert "! joe/broken.jpg was refused: " in first.output
        check_record(first)
        check_commands(first, samples)
        first.process.send_signal(signal.SIGINT)
        assert first.ended() == 0
        assert "Traceback" not in first.output

    with running(tmp_path) as second:
        assert "the people of the last time are back" in second.output
        assert second.client.people() == {"barack": 1, "eileen": 1}
        assert second.client.recognise(samples["obama3.jpg"]) == "obama3:barack"
        check_restarts(second, samples)
        check_privacy(tmp_path / "faceapp")
        os.kill(second.services()["aws"], signal.SIGKILL)
        assert second.ended() == 1
        assert "Error: The embedded AWS ended by signal 9. It held the queues and buckets in memory: " in second.output
        assert "Traceback" not in second.output


def check_restarts(system: Running, samples: dict[str, Path]) -> None:
    """R15: each part that holds nothing is started again when it is killed, and everything works on."""
    for name in ("flower", "scaler", "compute", "web"):
        before = system.services()[name]
        os.kill(before, signal.SIGKILL)
        wait_until(partial(is_another, system, name, before), what=f"{name}, anew")
    for name in ("Flower", "scaler", "compute host", "web tier"):
        assert f"! The {name} ended by signal 9 and is started again in 1 s. Its log is " in system.output
    wait_until(system.client.ready, what="the web tier, anew")
    wait_until(lambda: up.answers(f"{up.flower_url(system.settings)}/healthcheck"), what="Flower, anew")
    assert system.client.recognise(samples["obama3.jpg"]) == "obama3:barack"
    system.left = descendants(system.process.pid)


def is_another(system: Running, name: str, pid: int) -> bool:
    return system.services().get(name, pid) != pid


def check_privacy(folder: Path) -> None:
    """S6: faces, vectors, hashes of keys and all logs are for this user alone."""
    modes = {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    kinds = {path.relative_to(folder).as_posix(): path.is_dir() for path in folder.rglob("*")}
    assert {"test-up/logs/web-tier.log", "test-up/logs/app-tier-instance-1.log", "test-up/gallery/index.json"} <= {
        *modes
    }
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o700 if kinds[name] else 0o600)} == {}
    assert folder.stat().st_mode & 0o777 == 0o700


def check_full_disk(system: Running, samples: dict[str, Path], kept: Path) -> None:
    """R6: a full disk is warned of, answers go on, and the gallery is kept as soon as it can be."""
    wait_until(lambda: (kept / "index.json").exists(), what="the kept gallery")
    count = len(list(kept.iterdir()))
    # No file may grow beyond this: the console's lines fit, photos and the logs of new workers do not.
    limit_files(system, 32 * 1024)
    system.client.enrol("joe", [samples["obama_partial_face.jpg"]])
    wait_until(lambda: "! The gallery could not be kept in " in system.output, what="a warning")
    assert not list(kept.glob("*.part"))
    os.kill(next(iter(workers(system))), signal.SIGKILL)
    assert system.client.recognise(samples["astronaut.png"]) == "astronaut:eileen_collins"
    limit_files(system, resource.RLIM_INFINITY)
    wait_until(lambda: "The gallery is kept again." in system.output, what="a second try")
    assert len(list(kept.iterdir())) > count


def check_silence(system: Running, samples: dict[str, Path]) -> None:
    """R6: so is an AWS that is silent for a while, as on a laptop that slept."""
    os.kill(system.services()["aws"], signal.SIGSTOP)
    try:
        wait_until(lambda: system.output.count("! The gallery could not be kept in ") == 2, what="a warning")
    finally:
        os.kill(system.services()["aws"], signal.SIGCONT)
    wait_until(lambda: system.output.count("The gallery is kept again.") == 2, what="a second try")
    assert system.client.recognise(samples["biden.jpg"]) == "biden:biden"
    system.left = descendants(system.process.pid)


def limit_files(system: Running, size_bytes: int) -> None:
    """Let no file of any of its processes grow beyond this: a full disk, as far as they can see."""
    for pid in [system.process.pid, *descendants(system.process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            hard_bytes = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard_bytes))


def workers(system: Running) -> list[int]:
    """The processes of the compute host's workers."""
    forked = children(system.services()["compute"])
    return [pid for pid in forked if "reaper" not in command_of(pid)]


def check_record(system: Running) -> None:
    """What the embedded AWS shows: the instances, and nothing but uploads and results in their buckets (G1)."""
    ec2 = system.aws("ec2")
    filters = [{"Name": "tag:faceapp:stack", "Values": ["test-up"]}]
    found = [each for group in ec2.describe_instances(Filters=filters)["Reservations"] for each in group["Instances"]]
    names = sorted(tag["Value"] for each in found for tag in each["Tags"] if tag["Key"] == "Name")
    assert names == ["app-tier-instance-1", "web-instance"]
    s3, settings = system.aws("s3"), system.settings
    uploads, results, others = (
        [each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        for bucket in (settings.in_bucket, settings.out_bucket, settings.gallery_bucket)
    )
    assert uploads == results
    assert len(results) == 1
    assert REQUEST_ID.fullmatch(results[0])
    assert LEASE_KEY in others, "the scaler's lease"


def check_commands(system: Running, samples: dict[str, Path]) -> None:
    """The commands that ask a running service."""
    folder, state = samples["biden.jpg"].parent, {"XDG_STATE_HOME": str(system.log.parent)}
    people = ["people", "--url", system.client.url]
    assert faceapp(*people, "list", **state).stdout == "barack\t1\njoe\t1\n"
    assert faceapp(*people, "enrol", "eileen", samples["astronaut.png"], **state).stdout == "eileen is enrolled.\n"
    asked = faceapp("recognize", "--url", system.client.url, folder / "astronaut.png", folder / "biden.jpg", **state)
    assert asked.stdout == "astronaut:eileen\nbiden:joe\n"
    assert faceapp(*people, "forget", "joe", **state).stdout.startswith("joe is forgotten. ")
    again = faceapp(*people, "forget", "joe", **state)
    assert (again.returncode, again.stderr) == (1, "Error: Nobody with the name 'joe' is enrolled.\n")
    refused = faceapp(*people, "enrol", "..", samples["biden.jpg"], **state)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.system
def test_a_first_gallery_is_there_nothing_ends_it_and_a_killed_supervisor_leaves_nothing(
    samples: dict[str, Path], tmp_path: Path
) -> None:
    """R6"""
    with running(tmp_path) as system:
        assert system.client.people() == {"biden": 1, "eileen_collins": 1, "obama": 2}
        assert f"curl -F inputFile=@{samples['obama3.jpg']} {system.client.url}" in system.output
        check_full_disk(system, samples, tmp_path / "faceapp" / "test-up" / "gallery")
        check_silence(system, samples)
        system.process.kill()
        assert system.ended() == -signal.SIGKILL


def test_services_see_nothing_of_the_users_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret")
    monkeypatch.setenv("FACEAPP_PREFIX", "other")
    settings = Settings(prefix="mine", aws_port=4999, threshold=0.5)
    environ = up.environment(settings)
    assert "AWS_PROFILE" not in environ
    assert "secret" not in environ.values()
    assert environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4999"
    assert environ["AWS_CONFIG_FILE"] == environ["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert Settings.from_environ(environ) == settings


def test_a_worker_that_does_not_answer_is_waited_for_no_longer_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: `up` waited for the first gallery for ever, and said nothing of what the worker's log said."""
    monkeypatch.setattr(up, "ENROL_TIMEOUT_S", 0.1)
    with Services(tmp_path, os.environ) as services:
        log = tmp_path / f"{compute.APP_TIER}1.log"
        log.write_text("12:00 INFO    starts\n12:01 WARNING cannot ask SQS for messages: no certificates\n")
        local = up._Local(Settings(), up.Options(), services, Progress())
        with pytest.raises(LocalError) as raised:
            local._in_time(threading.Event().wait)
    said = "No worker has answered: the first photo is not enrolled after 0.1 s. The logs say:"
    assert raised.value.detail == f"{said}\n{log}:\n12:01 WARNING cannot ask SQS for messages: no certificates"


def test_an_address_of_another_machine_is_refused() -> None:
    [port] = free_ports(1)
    with pytest.raises(LocalError, match=r"Port \d+ on 192\.0\.2\.1 cannot be used .*FACEAPP_WEB_PORT"):
        up.check_ports(Settings(web_host="192.0.2.1", web_port=port))


@pytest.mark.parametrize(
    ("listens_on", "host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]"), ("example.org", "example.org")],
)
def test_where_to_connect_to(listens_on: str, host: str) -> None:
    assert up.reachable(listens_on) == host
