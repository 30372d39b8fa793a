"""Processes that die, hang, or are told to leave, while photos are on their way."""

from __future__ import annotations

from tests.faults.conftest import Record, Running
from tests.faults.faulty import HOLDS
from tests.faults.system import books, burst, photo
from tests.services import wait_until


def test_a_worker_killed_in_the_middle_of_a_photo(run: Running, record: Record) -> None:
    with run(task_time_limit_s=10, visibility_s=12) as system:
        sent = burst(system, 30, more=[photo(does=HOLDS)])
        wait_until(lambda: system.held() and len(system.results()) >= 1, what="a photo at work")
        system.kill(system.services.running[0])
        system.let_go()
        system.start_worker()
        found = books(system, sent)
        record("a worker's main process killed (-9) in the middle of a photo", f"{found.again} done twice", found)
        assert found.done == found.accepted == 31
        assert found.unanswered == 0
