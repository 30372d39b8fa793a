"""`celery`, which makes a file when its worker is ready: an application may log as it likes, or not at all.

`python -m celery_sqs.testing.worker_process FILE -A APP worker ...`
"""

from __future__ import annotations

import sys
from pathlib import Path

from celery_sqs.testing.process import end_with_parent


def main() -> None:
    """Be `celery` with the arguments that follow FILE."""
    _, ready, *arguments = sys.argv
    sys.argv = ["celery", *arguments]
    # As celery's own program does, before anything makes a lock or a socket.
    from celery import maybe_patch_concurrency

    maybe_patch_concurrency()
    from celery import signals
    from celery.__main__ import main as celery

    end_with_parent()
    signals.worker_ready.connect(lambda **_: Path(ready).touch(), weak=False)
    celery()


if __name__ == "__main__":
    main()
