"""The product's worker, and photos that do something to it: `celery -A tests.faults.faulty worker`.

What a photo does stands in a comment of its file, and is done where the worker would recognise it, in a child of its
pool. `FAULTS_FOLDER` is where a child says what it is at.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from faceapp.recognition import Description, EnrolledFace, Recogniser
from faceapp.tasks import app

__all__ = ["HANGS", "HOLDS", "KILLS", "LET_GO", "app"]

KILLS = "fault: kills"
"""The process is killed, every time."""
HANGS = "fault: hangs"
"""The process does nothing any more, every time, and does not hear a signal that it could handle."""
HOLDS = "fault: holds"
"""The process writes the file `<its id>.held` and goes on when there is a file `let-go`."""
LET_GO = "let-go"

_describe, _describe_for_enrolment = Recogniser.describe, Recogniser.describe_for_enrolment


def _faulty(self: Recogniser, photo: bytes) -> Description:
    _fail(photo)
    return _describe(self, photo)


def _faulty_for_enrolment(self: Recogniser, photo: bytes) -> EnrolledFace:
    _fail(photo)
    return _describe_for_enrolment(self, photo)


def _fail(photo: bytes) -> None:
    if KILLS.encode() in photo:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANGS.encode() in photo:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        threading.Event().wait()
    if HOLDS.encode() in photo:
        folder = Path(os.environ["FAULTS_FOLDER"])
        (folder / f"{os.getpid()}.held").touch()
        while not (folder / LET_GO).exists():
            time.sleep(0.02)


setattr(Recogniser, "describe", _faulty)  # noqa: B010 - mypy forbids =
setattr(Recogniser, "describe_for_enrolment", _faulty_for_enrolment)  # noqa: B010
