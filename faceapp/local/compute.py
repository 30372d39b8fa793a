"""The host that makes the embedded EC2's instances real (`python -m faceapp.local.compute --logs DIR`).

It watches EC2 and runs what each app-tier instance would run: nothing while it boots, then the worker, started again
when it crashes as systemd would, and left alone when it was told to leave (Flower's button). An instance that is
stopped or terminated gets SIGTERM, a grace period in which the worker ends what it holds, and SIGKILL. moto calls an
instance stopped at once; the host lets it drain all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

from faceapp.config import Settings, aws, settings
from faceapp.local import zygote
from faceapp.local.processes import GRACE_S, WELL_AFTER_S, Reaper, restart_pause_s
from faceapp.observability import logs

logger = logging.getLogger("faceapp.local.compute")

APP_TIER = "app-tier-instance-"
READY = "the compute host is ready"
LOOK_EVERY_S = 0.5
REAP_EVERY_S = 0.1
SHUTDOWN_GRACE_S = GRACE_S - 2
"""When the host itself is stopped: within the grace period that it gets."""


@dataclass
class Machine:
    """What runs for one EC2 instance."""

    id: str
    name: str
    start_at_s: float
    """When the boot, or the pause after a crash, is over."""
    pid: int | None = None
    """The worker's process, and the process group of everything below it."""
    started_s: float = 0.0
    crashes: int = 0
    kill_at_s: float | None = None
    """Set when the instance drains: the end of the grace period."""
    left: bool = False
    """Whether its worker was told to leave, and did: the scaler hears its goodbye and stops the instance."""


class Host:
    """Runs the workers of the stack's app-tier instances, with a log file each in `log_folder`."""

    def __init__(self, settings: Settings, log_folder: Path) -> None:
        self._settings, self._log_folder = settings, log_folder
        for log in log_folder.glob(f"{APP_TIER}*.log"):  # of the last time
            log.unlink()
        self._machines: dict[str, Machine] = {}
        self._ec2 = aws.client("ec2", retries=aws.ONCE, read_timeout=10)
        self._reaper = Reaper(grace_s=0)
        self._blind = False
        self._stopped = False

    def run(self) -> None:
        """Watch and act until `stop`; then stop every worker and return."""
        look_at_s = 0.0
        while not self._stopped:
            if time.monotonic() >= look_at_s:
                look_at_s = time.monotonic() + LOOK_EVERY_S
                if (instances := self._look()) is not None:
                    self._follow(instances)
            self._advance_all()
        self._follow({})
        for machine in self._machines.values():
            assert machine.kill_at_s is not None
            machine.kill_at_s = min(machine.kill_at_s, time.monotonic() + SHUTDOWN_GRACE_S)
        while self._machines:
            self._advance_all()
        self._reaper.close()

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """End `run`: a signal handler."""
        self._stopped = True

    def _look(self) -> dict[str, str] | None:
        """The names, by id, of the instances that run or are about to; None when EC2 does not answer."""
        filters = {
            "tag:faceapp:stack": self._settings.prefix,
            "tag:Name": f"{APP_TIER}*",
            "instance-state-name": ("pending", "running"),
        }
        try:
            pages = self._ec2.get_paginator("describe_instances").paginate(
                Filters=[
                    {"Name": name, "Values": [value] if isinstance(value, str) else list(value)}
                    for name, value in filters.items()
                ]
            )
            found = [instance for page in pages for each in page["Reservations"] for instance in each["Instances"]]
        except (BotoCoreError, ClientError) as error:
            if not self._blind:
                logger.warning("EC2 does not answer, everything stays as it is: %s", error)
            self._blind = True
            return None
        self._blind = False
        return {
            each["InstanceId"]: next(tag["Value"] for tag in each["Tags"] if tag["Key"] == "Name") for each in found
        }

    def _follow(self, instances: Mapping[str, str]) -> None:
        """Boot what is new, and drain what is not there any more."""
        now_s = time.monotonic()
        for instance, name in instances.items():
            if instance not in self._machines:
                low_s, high_s = self._settings.local_boot_min_s, self._settings.local_boot_max_s
                boot_s = random.uniform(low_s, high_s)  # nosec B311 # no secret
                self._machines[instance] = Machine(instance, name, start_at_s=now_s + boot_s)
                logger.info("%s (%s): boots, %.1f s", name, instance, boot_s)
        for machine in list(self._machines.values()):
            if machine.id not in instances and machine.kill_at_s is None:
                self._drain(machine, now_s)

    def _drain(self, machine: Machine, now_s: float) -> None:
        if machine.pid is None:
            self._forget(machine)
            return
        grace_s = self._settings.local_stop_grace_s
        machine.kill_at_s = now_s + grace_s
        logger.info("%s (%s): stops, its worker %d has %g s to finish", machine.name, machine.id, machine.pid, grace_s)
        os.kill(machine.pid, signal.SIGTERM)

    def _advance_all(self) -> None:
        for machine in list(self._machines.values()):
            self._advance(machine)
        time.sleep(REAP_EVERY_S)

    def _advance(self, machine: Machine) -> None:
        """Whatever is due for one instance now."""
        now_s = time.monotonic()
        if machine.pid is not None:
            if ended := os.waitid(os.P_PID, machine.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                how = "status" if ended.si_code == os.CLD_EXITED else "signal"
                machine.left = (how, ended.si_status) == ("status", 0)
                self._bury(machine, f"{how} {ended.si_status}", now_s)
            elif machine.kill_at_s is not None and now_s >= machine.kill_at_s:
                logger.warning("%s (%s): killed, its worker did not end in time", machine.name, machine.id)
                with contextlib.suppress(ProcessLookupError):  # not yet a group of its own: at the next look
                    os.killpg(machine.pid, signal.SIGKILL)
        elif not machine.left and now_s >= machine.start_at_s and not self._is_taken(machine.name):
            self._start(machine, now_s)

    def _is_taken(self, name: str) -> bool:
        """Whether a worker with that name still drains: two of one name would take each other's control messages."""
        return any(each.name == name and each.pid is not None for each in self._machines.values())

    def _start(self, machine: Machine, now_s: float) -> None:
        processes = self._settings.local_instance_processes
        machine.pid = zygote.fork_worker(
            ["--hostname", f"celery@{machine.name}", "--concurrency", str(processes)],
            log=self._log_folder / f"{machine.name}.log",
            release=self._release,
        )
        machine.started_s = now_s
        self._reaper.add(machine.pid)
        logger.info("%s (%s): its worker is process %d", machine.name, machine.id, machine.pid)

    def _release(self) -> None:
        """In a forked worker: let go of what is the host's."""
        self._reaper.release()
        self._ec2.close()

    def _bury(self, machine: Machine, how: str, now_s: float) -> None:
        """A worker has ended: nothing of it may be left, and it comes again unless its instance was stopped."""
        assert machine.pid is not None
        # Before its id can be given to another process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.pid, signal.SIGKILL)
        os.waitpid(machine.pid, 0)
        self._reaper.discard(machine.pid)
        machine.pid = None
        if machine.kill_at_s is not None:
            logger.info("%s (%s): stopped", machine.name, machine.id)
            self._forget(machine)
            return
        if machine.left:
            logger.info("%s (%s): its worker was told to leave, and did", machine.name, machine.id)
            return
        machine.crashes = 1 if now_s - machine.started_s > WELL_AFTER_S else machine.crashes + 1
        pause_s = restart_pause_s(machine.crashes)
        machine.start_at_s = now_s + pause_s
        logger.warning("%s (%s): its worker ended by %s, again in %g s", machine.name, machine.id, how, pause_s)

    def _forget(self, machine: Machine) -> None:
        del self._machines[machine.id]


def main(arguments: list[str] | None = None) -> None:
    """Host the instances until SIGTERM, SIGINT or SIGHUP."""
    parser = argparse.ArgumentParser(prog="python -m faceapp.local.compute", description="EC2 instances, as processes")
    parser.add_argument("--logs", type=Path, required=True, help="the folder for the instances' logs")
    log_folder = parser.parse_args(arguments).logs
    logs.configure(settings())
    zygote.load()
    host = Host(settings(), log_folder)
    for number in zygote.HANDLED:
        signal.signal(number, host.stop)
    logger.info(READY)
    host.run()


if __name__ == "__main__":
    main()
