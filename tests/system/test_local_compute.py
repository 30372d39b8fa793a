"""The compute host: EC2 instances as real worker processes, against the embedded AWS and without a scaler."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from faceapp import tasks
from faceapp.config import Settings
from faceapp.errors import LocalError
from faceapp.local import compute, zygote
from tests.support.aws import plain_client
from tests.support.services import REPOSITORY, environ, wait_until

IMAGE = "ami-12c6146b"


class Running:
    """A compute host that is ready, and the EC2 that it watches."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, ec2: Any, prefix: str) -> None:
        self.process, self.folder, self.ec2, self.prefix = process, folder, ec2, prefix

    @property
    def output(self) -> str:
        return (self.folder / "host").read_text()

    def run_instance(self, name: str, *, stack: str = "") -> str:
        tags = [{"Key": "Name", "Value": name}, {"Key": "faceapp:stack", "Value": stack or self.prefix}]
        [instance] = self.ec2.run_instances(
            ImageId=IMAGE,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )["Instances"]
        return str(instance["InstanceId"])

    def stop_instance(self, instance: str) -> None:
        self.ec2.stop_instances(InstanceIds=[instance])

    def log(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def worker(self, name: str) -> psutil.Process:
        """The parent of the instance's worker, once it is ready and has all its children."""
        ready = f"celery@{name} ready."
        wait_until(lambda: ready in self.log(name), timeout_s=240, what=f"{name}'s worker")
        return psutil.Process(self.pids(name)[-1])

    def pids(self, name: str) -> list[int]:
        """The processes that the host started for the instance, one after the other."""
        return [int(pid) for pid in re.findall(rf"{name} \(.*\): its worker is process (\d+)", self.output)]

    def wait_for(self, line: str) -> None:
        wait_until(lambda: re.search(line, self.output), timeout_s=240, what=line)


@contextmanager
def host(folder: Path, settings: Settings, endpoint: str, **more: str) -> Iterator[Running]:
    """A compute host as a process, killed at the end if it still runs."""
    env = environ(endpoint, settings, FACEAPP_LOCAL_BOOT_MIN_S="0", FACEAPP_LOCAL_BOOT_MAX_S="0", **more)
    with (folder / "host").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "faceapp.local.compute", "--logs", str(folder)],
            cwd=REPOSITORY,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = Running(process, folder, plain_client("ec2", endpoint), settings.prefix)
    try:
        wait_until(
            lambda: process.poll() is not None or compute.READY in running.output, timeout_s=240, what="the host"
        )
        assert process.poll() is None, running.output
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shared(system: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One host for the tests that use instances of their own names."""
    folder = tmp_path_factory.mktemp("compute")
    with host(folder, system, aws_endpoint, FACEAPP_LOCAL_STOP_GRACE_S="1") as running:
        yield running


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


@pytest.mark.system
def test_an_instance_runs_a_worker_of_its_name_until_it_is_stopped(shared: Running) -> None:
    instance = shared.run_instance("app-tier-instance-1")
    worker = shared.worker("app-tier-instance-1")
    processes = tree(worker)
    assert len(processes) == 2, "the parent and one pool process"
    assert {os.getsid(each.pid) for each in processes} == {worker.pid}, "a session of its own"
    shared.stop_instance(instance)
    shared.wait_for(r"app-tier-instance-1 \(.*\): stopped")
    assert gone(processes)()
    assert "Warm shutdown" in shared.log("app-tier-instance-1")
    shared.ec2.start_instances(InstanceIds=[instance])
    wait_until(lambda: len(shared.pids("app-tier-instance-1")) == 2, timeout_s=240, what="the second start")
    processes = tree(psutil.Process(shared.pids("app-tier-instance-1")[-1]))
    shared.ec2.terminate_instances(InstanceIds=[instance])
    wait_until(gone(processes), timeout_s=240, what="the second end")


@pytest.mark.system
def test_a_killed_worker_leaves_nothing_and_comes_again(shared: Running) -> None:
    instance = shared.run_instance("app-tier-instance-2")
    processes = tree(shared.worker("app-tier-instance-2"))
    processes[0].kill()
    wait_until(gone(processes), what="the end of the whole tree")
    shared.wait_for(r"app-tier-instance-2 \(.*\): its worker ended by signal 9, again in 1 s")
    wait_until(lambda: len(shared.pids("app-tier-instance-2")) == 2, what="the second worker")
    wait_until(lambda: shared.log("app-tier-instance-2").count(" ready.") == 2, what="the second worker's readiness")
    shared.stop_instance(instance)
    shared.wait_for(r"app-tier-instance-2 \(.*\): stopped")


@pytest.mark.system
def test_a_worker_that_was_told_to_leave_stays_away_until_its_instance_starts_anew(shared: Running) -> None:
    name = "app-tier-instance-7"
    instance = shared.run_instance(name)
    processes = tree(shared.worker(name))
    tasks.app.control.broadcast("shutdown", destination=[f"celery@{name}"])
    shared.wait_for(rf"{name} \(.*\): its worker was told to leave, and did")
    wait_until(gone(processes), what="the end of the whole tree")
    other = shared.run_instance("app-tier-instance-9")
    shared.worker("app-tier-instance-9")
    assert len(shared.pids(name)) == 1, "what came later has started meanwhile"
    shared.stop_instance(instance)
    shared.ec2.terminate_instances(InstanceIds=[other])
    shared.wait_for(r"app-tier-instance-9 \(.*\): stopped")
    shared.ec2.start_instances(InstanceIds=[instance])
    wait_until(lambda: len(shared.pids(name)) == 2, timeout_s=240, what="the second start")
    shared.ec2.terminate_instances(InstanceIds=[instance])
    wait_until(lambda: shared.output.count(f"{name} ({instance}): stopped"), timeout_s=240, what="the second end")


@pytest.mark.system
def test_a_worker_that_does_not_end_is_killed_after_the_grace(shared: Running) -> None:
    instance = shared.run_instance("app-tier-instance-3")
    processes = tree(shared.worker("app-tier-instance-3"))
    for each in processes:
        each.suspend()
    shared.stop_instance(instance)
    shared.wait_for(r"app-tier-instance-3 \(.*\): killed, its worker did not end in time")
    wait_until(gone(processes), what="the end of the whole tree")
    shared.wait_for(r"app-tier-instance-3 \(.*\): stopped")


@pytest.mark.system
def test_only_the_stacks_app_tier_gets_workers(shared: Running) -> None:
    others = [shared.run_instance("web-instance"), shared.run_instance("app-tier-instance-8", stack="another")]
    ours = shared.run_instance("app-tier-instance-4")
    shared.worker("app-tier-instance-4")
    assert not any(instance in shared.output for instance in others)
    shared.ec2.terminate_instances(InstanceIds=[*others, ours])
    shared.wait_for(r"app-tier-instance-4 \(.*\): stopped")


@pytest.mark.system
def test_a_stopped_host_ends_its_workers_warm(system: Settings, aws_endpoint: str, tmp_path: Path) -> None:
    with host(tmp_path, system, aws_endpoint) as running:
        instance = running.run_instance("app-tier-instance-5")
        processes = tree(running.worker("app-tier-instance-5"))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(240) == 0
        assert gone(processes)()
        assert "Warm shutdown" in running.log("app-tier-instance-5")
        assert "killed" not in running.output
        running.ec2.terminate_instances(InstanceIds=[instance])


@pytest.mark.system
def test_a_killed_host_leaves_no_worker(system: Settings, aws_endpoint: str, tmp_path: Path) -> None:
    with host(tmp_path, system, aws_endpoint) as running:
        instance = running.run_instance("app-tier-instance-6")
        processes = tree(running.worker("app-tier-instance-6"))
        running.process.kill()
        wait_until(gone(processes), what="the end of the whole tree")
        running.ec2.terminate_instances(InstanceIds=[instance])


def test_an_instance_that_is_stopped_while_it_boots_never_gets_a_worker(stack: Settings, tmp_path: Path) -> None:
    slow = compute.Host(replace(stack, local_boot_min_s=600, local_boot_max_s=600), tmp_path)
    slow._follow({"i-1": "app-tier-instance-1"})
    slow._advance_all()
    assert [each.pid for each in slow._machines.values()] == [None]
    slow._follow({})
    assert slow._machines == {}
    slow.stop()
    slow.run()


def test_an_ec2_that_does_not_answer_changes_nothing_and_is_said_once(
    stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    blind = compute.Host(stack, tmp_path)
    with caplog.at_level(logging.WARNING, "faceapp.local.compute"):
        assert blind._look() is None
        assert blind._look() is None
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "EC2 does not answer, everything stays as it is"
    ]
    blind.stop()
    blind.run()


def test_a_process_with_threads_does_not_fork(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(LocalError, match=r"The compute host has \d+ threads"):
            zygote.fork_worker([], log=tmp_path / "log", release=lambda: None)
    finally:
        done.set()
        thread.join()
