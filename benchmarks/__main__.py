"""All benchmarks, one after the other: `make bench`. Each is a process of its own, so none warms another up."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {
    "recognition": "Recognition beside dlib and facenet-pytorch",
    "path": "The whole path beside the bare pipeline",
    "gallery": "Search in the gallery",
    "scaler": "Scaling policies beside others' and beside a lower bound",
    "broker": "Events and remote control over SNS and SQS",
    "calls": "AWS calls for tasks, beside Celery's own on SQS",
    "priorities": "Priorities on SQS, and what listening to four queues costs",
    "web_open": "A thousand open requests",
    "hostile --made-up 14": "Requests made to cost more than their bytes, and what others notice",
    "load --photos 200 --concurrency 200": "A burst, beside Celery + Redis and beside simple polling",
    "boot": "A worker's start, step by step",
}


def main() -> None:
    failed = []
    for name, title in BENCHMARKS.items():
        print(f"\n## {title} (python -m benchmarks.{name})\n", flush=True)
        if subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *f"benchmarks.{name}".split()], check=False
        ).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
