"""A worker's start, step by step: `python -m benchmarks.boot`; as root, `--cold` reads everything from the disk first.

What of an instance's boot this machine can tell: from the moment at which systemd starts the worker to its first
answer. deploy/BOOT.md has the rest. The AWS is the embedded one, with as many enrolled photos as `--enrolled` says.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.path import users_environ
from benchmarks.table import print_table
from celery_sqs.testing.aws import LISTENING
from faceapp.config import Settings
from faceapp.local.processes import Services
from faceapp.people import Gallery, NewPhoto
from faceapp.security import credential
from faceapp.stack import data_tier as stack
from faceapp.storage import Storage

DIMENSION = 128
MODEL = "dlib-resnet-v1"
STEPS = """
import json, sys, time
marks = [("the interpreter", time.time())]
import faceapp.tasks
marks.append(("Celery and the tasks", time.time()))
import faceapp.work.worker
marks.append(("torch", time.time()))
worker = faceapp.work.worker.this_worker()
marks.append(("the model", time.time()))
worker.warm()
marks.append(("the gallery", time.time()))
print(json.dumps(marks))
"""
READY, ANSWER = "ready, as a worker", "its first answer, to a photo that waits"


def steps(environ: dict[str, str]) -> dict[str, float]:
    """Seconds of each step that a worker's parent process takes before it is Celery's."""
    began_s = time.time()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS], env=environ, check=True, capture_output=True, text=True
    )
    found = {}
    for name, at_s in json.loads(done.stdout):
        found[name], began_s = at_s - began_s, at_s
    return found


def start(environ: dict[str, str], storage: Storage, log: Path) -> dict[str, float]:
    """Seconds from a worker's start to its being ready, and to its first result."""
    from faceapp import tasks

    request_id = uuid.uuid4().hex
    storage.put_photo(request_id, noise(), file_name="noise.jpg", content_type="image/jpeg")
    tasks.recognize.apply_async([request_id], task_id=request_id, ignore_result=True)
    command = [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "worker", "--hostname", "celery@boot"]
    began_s, found = time.time(), dict[str, float]()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        while len(found) < 2:
            if process.poll() is not None:
                sys.exit(f"the worker ended:\n{log.read_text()}")
            if READY not in found and "ready." in log.read_text():
                found[READY] = time.time() - began_s
            if storage.get_result(request_id):
                found[ANSWER] = time.time() - began_s
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait()
    return found


def noise() -> bytes:
    """A photo without a face."""
    photo = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo, "JPEG")
    return photo.getvalue()


def enrol(settings: Settings, count: int) -> None:
    """As many photos, with made-up vectors, and the snapshot that a worker begins with."""
    gallery = Gallery(Storage(settings), model=MODEL, dimension=DIMENSION, refresh_s=0)
    rng = np.random.default_rng(0)
    for n in range(count):
        vector = rng.normal(size=DIMENSION).astype(np.float32)
        photo = NewPhoto(data=n.to_bytes(8, "big"), descriptor=vector, low_descriptor=vector)
        gallery.enrol(f"person-{n // 3}", [photo])
    gallery.refresh()


def drop_caches() -> None:
    """Have the kernel forget what it has read."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--enrolled", type=int, default=300, help="enrolled photos (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="empty the kernel's caches before each start (root)")
    options = parser.parse_args()
    settings = Settings(prefix=f"b{uuid.uuid4().hex[:8]}")
    environ = users_environ()
    environ |= {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "FACEAPP_PREFIX": settings.prefix}
    environ |= {**credential.fresh(), "FACEAPP_QUEUE_WAIT_S": "2"}
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder), environ) as services:
        server = services.start("embedded AWS", [sys.executable, "-m", "faceapp.local.aws", "--port", "0"])
        services.wait_for(lambda: LISTENING in server.log_tail(), timeout_s=60, what="The embedded AWS does not listen")
        endpoint = server.log_tail().partition(LISTENING)[2].split()[0]
        environ["AWS_ENDPOINT_URL"] = endpoint
        os.environ |= environ
        stack.apply(settings)
        enrol(settings, options.enrolled)
        storage, log = Storage(settings), Path(folder) / "worker"
        taken: dict[str, list[float]] = {}
        for _ in range(options.runs):
            for measure in (partial(steps, environ), partial(start, environ, storage, log)):
                if options.cold:
                    drop_caches()
                for name, taken_s in measure().items():
                    taken.setdefault(name, []).append(taken_s)
    rows = [[name, f"{statistics.median(each):.2f}", f"{max(each):.2f}"] for name, each in taken.items()]
    print_table(["a worker's start", "s, median", "s, longest"], rows)


if __name__ == "__main__":
    main()
