"""Services as real processes: started, watched, and none left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faceapp.errors import LocalError
from faceapp.local import processes
from faceapp.local.processes import Files, Services
from faceapp.local.reaper import exists
from tests.support.services import wait_until

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("up", flush=True)
time.sleep(600)
"""
"""Ignores SIGTERM, and so does its child."""

SUPERVISOR = """
import sys, time
from pathlib import Path
from faceapp.local import processes
from faceapp.local.processes import Files, Services
services = Services(Path(sys.argv[1]), {})
for _ in range(2):
    print(services.start("sleeper", ["/bin/sleep", "600"]).process.pid, flush=True)
services.stop(services.running[:1])
print("started", flush=True)
time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_leaving_stops_every_process_and_their_children(tmp_path: Path) -> None:
    with Services(tmp_path, os.environ, grace_s=0.5) as services:
        kind = services.start("kind", ["/bin/sleep", "600"])
        stubborn = services.start("stubborn", python(STUBBORN))
        services.wait_for(lambda: stubborn.log_tail() == "up\nup", timeout_s=240, what="The service is not up")
        groups = [kind.process.pid, stubborn.process.pid]
        assert all(exists(group) for group in groups)
    assert kind.process.returncode == -signal.SIGTERM
    assert stubborn.process.returncode == -signal.SIGKILL
    wait_until(lambda: not any(exists(group) for group in groups), what="the groups' end")


def test_a_service_that_ends_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Services(tmp_path, os.environ) as services:
        services.start("web tier", python("print('x' * 10, flush=True); raise SystemExit('out of luck')"))
        with pytest.raises(
            LocalError, match=r"(?s)The web tier ended with status 1\. .*web-tier\.log:\nxxx.*out of luck"
        ):
            services.wait_for(lambda: False, timeout_s=240, what="never")


def test_what_does_not_come_in_time_is_an_error_with_the_logs(tmp_path: Path) -> None:
    with Services(tmp_path, os.environ) as services:
        services.start("sleeper", ["/bin/sleep", "600"])
        with pytest.raises(LocalError, match=r"(?s)It is not there after 0\.1 s.*sleeper\.log"):
            services.wait_for(lambda: False, timeout_s=0.1, what="It is not there")


def test_a_log_is_followed_line_by_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Services(tmp_path, os.environ, follow=True) as services:
        service = services.start("talker", python("print('one\\ntwo')"))
        seen = ""

        def everything() -> bool:
            nonlocal seen
            seen += capfd.readouterr().out
            return seen.endswith("talker | two\n")

        wait_until(everything, what="the log")
        assert "talker | one\n" in seen
        wait_until(lambda: not service.running, what="the end")


def test_an_interrupt_between_start_and_note_waits_for_the_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Services(tmp_path, os.environ) as services:
        upstream = subprocess.Popen

        def interrupted(*arguments: object, **options: object) -> object:
            process = upstream(*arguments, **options)  # type: ignore[call-overload]
            services.interrupt()
            return process

        monkeypatch.setattr(subprocess, "Popen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            services.start("sleeper", ["/bin/sleep", "600"])
        monkeypatch.undo()
        [service] = services.running
    assert service.process.returncode == -signal.SIGTERM


def test_a_second_interrupt_ends_the_grace_period(tmp_path: Path) -> None:
    with Services(tmp_path, os.environ, grace_s=3600) as services:
        stubborn = services.start("stubborn", python(STUBBORN))
        services.wait_for(lambda: stubborn.log_tail() == "up\nup", timeout_s=240, what="The service is not up")
        with pytest.raises(KeyboardInterrupt):
            services.interrupt()
        services.interrupt()
    assert stubborn.process.returncode == -signal.SIGKILL


def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [*python(SUPERVISOR), str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert supervisor.stdout
    stopped, left = int(supervisor.stdout.readline()), int(supervisor.stdout.readline())
    assert supervisor.stdout.readline() == "started\n"
    assert not exists(stopped)
    assert exists(left)
    os.killpg(supervisor.pid, signal.SIGKILL)
    supervisor.communicate()
    wait_until(lambda: not exists(left), what="the end of what the supervisor left")


def test_files_are_followed_from_now_on_and_when_they_are_made_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "instance-1.log", tmp_path / "instance-2.log"
    old.write_text("of the last time\n")
    (tmp_path / "other.log").write_text("of somebody else\n")
    files = Files(tmp_path, "instance-*.log")
    files.copy()
    old.unlink()
    files.copy()
    old.write_text("one\nhal")
    new.write_text("two\n")
    files.copy()
    assert capfd.readouterr().out == "  instance-1 | one\n  instance-2 | two\n"
    with old.open("a") as log:
        log.write("f\n")
    files.copy()
    assert capfd.readouterr().out == "  instance-1 | half\n"
    files.close()


def test_files_are_shown_only_when_logs_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = ""

    def shown() -> str:
        nonlocal seen
        seen += capfd.readouterr().out
        return seen

    with Services(tmp_path, os.environ) as quiet, Services(tmp_path, os.environ, follow=True) as services:
        quiet.follow_files("instance-*.log")
        services.follow_files("instance-*.log")
        (tmp_path / "instance-1.log").write_text("here\n")
        wait_until(shown, what="the line")
    assert shown() == "  instance-1 | here\n"


def test_a_service_that_ends_is_started_again_until_it_ends_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R15: a part that was killed ended everything."""
    monkeypatch.setattr(processes, "FIRST_RESTART_S", 0.01)
    said: list[str] = []
    with Services(tmp_path, os.environ, warn=said.append) as services:
        service = services.start("broken", [sys.executable, "-c", "print('broken', flush=True); raise SystemExit(3)"])
        service.restarts = True
        with pytest.raises(LocalError, match=r"The broken ended with status 3 for the 6th time in a row\."):
            services.wait_for(lambda: False, timeout_s=240, what="never")
        assert service.log.read_text().split() == ["broken"] * (processes.MOST_RESTARTS + 1)
    assert said[0] == f"The broken ended with status 3 and is started again in 0.01 s. Its log is {service.log}"
    assert len(said) == processes.MOST_RESTARTS


def test_what_a_killed_service_has_left_is_gone_before_it_is_started_again(tmp_path: Path) -> None:
    """R15: a forked child would keep the port."""
    with Services(tmp_path, os.environ, grace_s=0.5, warn=lambda _: None) as services:
        service = services.start("stubborn", [sys.executable, "-c", STUBBORN])
        service.restarts = True
        services.wait_for(lambda: service.log_tail() == "up\nup", timeout_s=240, what="The service is not up")
        first = service.process.pid
        os.kill(first, signal.SIGKILL)
        services.wait_for(lambda: service.process.pid != first, timeout_s=240, what="It is not there again")
        wait_until(lambda: not exists(first), what="the end of its group")


def test_the_trouble_in_a_log_is_shown_and_its_end_where_there_is_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.log_trouble(log) == ""
    log.write_text("INFO a\nx ERROR   b\nINFO c\n")
    assert processes.log_trouble(log) == "x ERROR   b"
    log.write_text("INFO a\nINFO c\n")
    assert processes.log_trouble(log) == "INFO a\nINFO c"
