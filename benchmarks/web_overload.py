"""More requests at once than the web tier takes: who is answered, how fast the others are refused, and what it costs.

`python -m benchmarks.web_overload` starts the embedded AWS and one web process, opens all connections as fast as it can
and sends a classic request on each. When all of the admitted ones wait for their answers, which no worker gives before,
the memory is read; then they are answered. `--at-once 50 --connections 1000 --photo-bytes 1000000` shows what waiting
requests with large photos hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import boto3
import psutil
from PIL import Image

from benchmarks.table import print_table
from benchmarks.web_open import GIVE_UP_S, SERVE, LateWorker, memory_mib, photo_form, running
from faceapp.config import Settings
from faceapp.operations import open_files
from faceapp.security import credential
from faceapp.stack import data_tier as stack


@dataclass
class Answers:
    """What the connections were answered, and after how many seconds."""

    lines: int = 0
    refusals_s: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


async def request(port: int, body: bytes, gate: asyncio.Semaphore, answers: Answers) -> None:
    """One classic request over a connection of its own."""
    head = (
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        async with gate:
            began_s = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + body)
            await writer.drain()
        text = await reader.read()
        writer.close()
    except OSError as error:
        answers.others.append(repr(error))
        return
    if text.endswith(b"photo:no_face"):
        answers.lines += 1
    elif text.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in text:
        answers.refusals_s.append(time.monotonic() - began_s)
    else:
        answers.others.append(text.decode(errors="replace")[-300:])


async def burst(port: int, body: bytes, count: int, at_once: int, worker: LateWorker, admitted: int) -> Answers:
    """All connections; the admitted ones are answered when all of them wait."""
    answers, gate = Answers(), asyncio.Semaphore(at_once)
    requests = [asyncio.create_task(request(port, body, gate, answers)) for _ in range(count)]
    await asyncio.to_thread(worker.take, admitted)
    threading.Thread(target=worker.release).start()
    await asyncio.wait_for(asyncio.gather(*requests), GIVE_UP_S)
    return answers


@contextmanager
def peak_mib(process: psutil.Process) -> Iterator[list[float]]:
    """The largest memory of the block, looked at ten times a second."""
    peak, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], memory_mib(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def files(process: psutil.Process) -> int:
    return sum(child.num_fds() for child in process.children())


def measure(options: argparse.Namespace) -> list[str]:
    settings = Settings(prefix=f"bench-{uuid.uuid4().hex[:8]}")
    stack.apply(settings)
    environment = {
        "FACEAPP_PREFIX": settings.prefix,
        "FACEAPP_WEB_WAITING": str(options.waiting),
        "FACEAPP_WEB_CONNECTIONS": str(options.waiting + 100),
    }
    admitted = min(options.connections, options.waiting)
    body = photo_form(Image.effect_noise((250, 250), 60), padding_bytes=options.photo_bytes)
    with running([sys.executable, "-c", SERVE], "the web tier listens on ", **environment) as (url, process):
        port, worker = int(url.rsplit(":", 1)[1]), LateWorker(settings)
        # The first ones make caches, and the connections to S3 and SQS, which stay.
        first = min(100, options.waiting)
        asyncio.run(burst(port, body, first, first, worker, first))
        worker.taken.clear()
        idle_mib, idle_files = memory_mib(process), files(process)
        with peak_mib(process) as peak:
            answers = asyncio.run(burst(port, body, options.connections, options.at_once, worker, admitted))
        time.sleep(1)
        refusals_s = sorted(answers.refusals_s) or [0.0]
        for other in answers.others[:3]:
            print(other, file=sys.stderr)
        return [
            f"{options.connections} at once",
            str(answers.lines),
            str(len(answers.refusals_s)),
            str(len(answers.others)),
            f"{statistics.median(refusals_s):.2f}",
            f"{refusals_s[-1]:.2f}",
            f"{idle_mib:.0f}",
            f"{peak[0]:.0f}",
            f"{memory_mib(process):.0f}",
            str(files(process) - idle_files),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description="more requests at once than the web tier takes")
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--at-once", type=int, default=3000, help="connections that are opened and sent on at once")
    parser.add_argument("--waiting", type=int, default=1000, help="FACEAPP_WEB_WAITING")
    parser.add_argument("--photo-bytes", type=int, default=20_000, help="each photo is at least so large")
    options = parser.parse_args()
    open_files.allow(4 * options.connections + 1000)
    os.environ.update(credential.fresh(), AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
    with running([sys.executable, "-m", "faceapp.local.aws", "--port", "0"], "listening on ") as (url, _):
        os.environ["AWS_ENDPOINT_URL"] = url
        boto3.setup_default_session()
        row = measure(options)
    columns = [
        "answered",
        "refused",
        "other",
        "refused p50 s",
        "max s",
        "idle MiB",
        "peak MiB",
        "MiB after",
        "files left",
    ]
    print_table(["", *columns], [row])


if __name__ == "__main__":
    main()
