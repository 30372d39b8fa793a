"""The acceptance test of the scaler on this machine: `faceapp up`, 0 -> N -> 0, with real photos and real workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.live import Answer, Burst, System, Watch, photos_in_turn, run, system
from tests.support.services import wait_until

pytestmark = pytest.mark.system

MOST = 15
VISIBILITY_S = 15
"""A killed worker's photos come back after so long. The stack's own is longer than a test should wait."""


@pytest.fixture(scope="module")
def depth(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that scales by depth and has enrolled its first gallery."""
    folder = tmp_path_factory.mktemp("depth")
    with system(folder, FACEAPP_SCALER_POLICY="depth", FACEAPP_SCALER_MAX_INSTANCES=str(MOST)) as running:
        attributes = {"VisibilityTimeout": str(VISIBILITY_S)}
        running.sqs.set_queue_attributes(QueueUrl=running.queue_url, Attributes=attributes)
        yield running


@pytest.fixture(scope="module")
def work(depth: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that scales by work and finds the other's gallery, so that it starts with nothing to do."""
    folder = tmp_path_factory.mktemp("work")
    gallery = depth.logs.parent / "gallery"
    shutil.copytree(gallery, folder / gallery.relative_to(gallery.parents[2]))
    with system(folder, FACEAPP_SCALER_POLICY="work") as running:
        yield running


@pytest.fixture(scope="module")
def burst(work: System) -> Iterator[tuple[Watch, list[Answer]]]:
    """A hundred photos' answers from the system that scales by work, which is watched until the last test."""
    assert work.instances() == {}
    with Watch(work) as watch:
        yield watch, Burst(work.settings.web_port, photos_in_turn(), count=100).join()


def check(answers: list[Answer], watched: System) -> None:
    """Every answer right, none lost, no worker killed."""
    assert [each.text for each in answers] == [each.expected for each in answers]
    assert watched.dead_letters() == 0
    assert watched.killed() == 0


def test_depth_starts_all_for_a_hundred_photos_and_stops_all(depth: System) -> None:
    live = run(depth)
    assert len(live.answers) == 100
    check(live.answers, depth)
    assert live.watch.samples[0].instances == 0
    assert live.watch.peak == MOST
    assert depth.counts() == (0, 0)


def test_work_starts_what_is_needed(work: System, burst: tuple[Watch, list[Answer]]) -> None:
    watch, answers = burst
    assert len(answers) == 100
    check(answers, work)
    assert watch.samples[0].instances == 0
    assert 1 <= watch.peak <= MOST


def test_a_stopped_instance_and_a_killed_worker_lose_no_photo(depth: System) -> None:
    depth.wait_for_nothing(timeout_s=240)
    before = depth.done_by()
    burst = Burst(depth.settings.web_port, photos_in_turn(), count=150)

    def busy() -> list[str]:
        """The instances that have answered a photo of this burst, and so hold the next ones."""
        return [name for name, count in depth.done_by().items() if count > before.get(name, 0)]

    wait_until(lambda: len(busy()) >= 2, timeout_s=240, what="two busy workers")
    stopped, killed, *_ = busy()
    os.killpg(depth.workers()[killed].pid, signal.SIGKILL)
    depth.ec2.stop_instances(InstanceIds=[depth.instances()[stopped]])
    check(burst.join(), depth)
    depth.wait_for_nothing(timeout_s=240)
    host_log = (depth.logs / "compute-host.log").read_text()
    assert re.search(rf"{killed} \(.*\): its worker ended by signal 9, again in 1 s", host_log)
    assert "Warm shutdown" in (depth.logs / f"{stopped}.log").read_text()
    assert depth.killed() == 0


def test_work_stops_what_it_started(work: System, burst: tuple[Watch, list[Answer]]) -> None:
    """After the others, since an instance is kept for the minute that is paid for."""
    assert burst
    work.wait_for_nothing(timeout_s=240)
    assert work.counts() == (0, 0)
    assert work.killed() == 0
