"""A web process with 1,000 requests open at once: memory, CPU seconds a request, and how long answers take.

`python -m benchmarks.web_open` starts the embedded AWS and a web process. It opens classic requests
over as many connections, waits until the task of each is in the queue, and answers them all: the load of a system whose
workers have been stopped and have to start first. `open` is from the first connection until the last task is queued,
the answers' times are from the first answer sent to the line received; both include the emulator's work, which shares
the machine. Everything runs on the loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import psutil
from PIL import Image

from benchmarks.table import print_table
from faceapp.config import Settings
from faceapp.operations import open_files
from faceapp.schema import Recognition
from faceapp.security import credential
from faceapp.stack import data_tier as stack

OPENED_AT_ONCE = 50
GIVE_UP_S = 300
SERVE = """
from dataclasses import replace
from faceapp.observability import logs
from faceapp.config import settings
from faceapp.http.server import serve

logs.configure(settings())
serve(replace(settings(), web_port=0))
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the process needed for all of the requests."""

    idle_mib: float
    held_mib: float
    cpu_s: float
    open_s: float
    answers_s: list[float]


class LateWorker:
    """Takes every message from the request queue and answers none before `release` is called."""

    def __init__(self, settings: Settings) -> None:
        self.sqs = boto3.client("sqs")
        self.queue_url = self.sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
        self.taken: list[tuple[str, str]] = []

    def take(self, count: int) -> None:
        """Receive until there are `count` requests."""
        deadline_s = time.monotonic() + GIVE_UP_S
        while len(self.taken) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{len(self.taken)} of {count} requests came within {GIVE_UP_S} s")
            answer = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            messages: list[Any] = list(answer.get("Messages", ()))
            for message in messages:
                envelope = json.loads(message["Body"])
                self.taken.append((envelope["headers"]["id"], envelope["properties"]["reply_to"]))
            if messages:
                entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
                self.sqs.delete_message_batch(QueueUrl=self.queue_url, Entries=entries)

    def release(self) -> None:
        """Answer all that was taken."""
        urls = {name: self.sqs.get_queue_url(QueueName=name)["QueueUrl"] for _, name in self.taken}
        for start in range(0, len(self.taken), 10):
            batch = self.taken[start : start + 10]
            for name, url in urls.items():
                entries = [{"Id": task_id, "MessageBody": answer(task_id)} for task_id, to in batch if to == name]
                self.sqs.send_message_batch(QueueUrl=url, Entries=entries)


def answer(task_id: str) -> str:
    result = Recognition(id=task_id, status="done").to_dict()
    return json.dumps({"task_id": task_id, "status": "SUCCESS", "result": result, "traceback": None, "children": []})


async def request(port: int, body: bytes, gate: asyncio.Semaphore) -> float:
    """One classic request over a connection of its own; when its line was there (time.monotonic)."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
    text = await reader.read()
    finished_s = time.monotonic()
    writer.close()
    if not text.endswith(b"photo:no_face"):
        raise RuntimeError(text.decode(errors="replace"))
    return finished_s


async def hold(port: int, worker: LateWorker, process: psutil.Process, count: int) -> tuple[float, float, list[float]]:
    """All requests at once: seconds until all were open, MiB then, and seconds to each one's answer."""
    body = photo_form(Image.effect_noise((250, 250), 60))
    gate = asyncio.Semaphore(OPENED_AT_ONCE)
    started_s = time.monotonic()
    requests = [asyncio.create_task(request(port, body, gate)) for _ in range(count)]
    await asyncio.to_thread(worker.take, count)
    open_s, held_mib = time.monotonic() - started_s, memory_mib(process)
    released_s = time.monotonic()
    threading.Thread(target=worker.release).start()
    finished_s = await asyncio.wait_for(asyncio.gather(*requests), GIVE_UP_S)
    return open_s, held_mib, [each - released_s for each in finished_s]


def photo_form(image: Image.Image, *, padding_bytes: int = 0) -> bytes:
    """A form (boundary `b`) with the image as a JPEG, followed by zeros up to `padding_bytes`."""
    photo = io.BytesIO()
    image.save(photo, "JPEG")
    part = b'--b\r\nContent-Disposition: form-data; name="inputFile"; filename="photo.jpg"\r\n\r\n'
    return part + photo.getvalue().ljust(padding_bytes, b"\0") + b"\r\n--b--\r\n"


def memory_mib(process: psutil.Process) -> float:
    """What the web process has to itself; the arbiter above it does nothing."""
    return sum(float(child.memory_info().rss) for child in process.children()) / 2**20


def cpu_s(process: psutil.Process) -> float:
    times = [child.cpu_times() for child in process.children()]
    return sum(float(each.user + each.system) for each in times)


@contextmanager
def running(command: list[str], says: str, **environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """A process of ours, and the URL that it says it listens on."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        said = next((line for line in process.stdout if says in line), "")
        if not said:
            raise RuntimeError(f"{command} did not start")
        # Whatever else it writes must not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield said.partition(says)[2].split()[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def measure(count: int) -> Run:
    settings = Settings(prefix=f"bench-{uuid.uuid4().hex[:8]}")
    stack.apply(settings)
    environment = {
        "FACEAPP_PREFIX": settings.prefix,
        "FACEAPP_WEB_WAITING": str(count),
        "FACEAPP_WEB_CONNECTIONS": str(count + 100),
    }
    with running([sys.executable, "-c", SERVE], "the web tier listens on ", **environment) as (url, process):
        port = int(url.rsplit(":", 1)[1])
        worker = LateWorker(settings)
        asyncio.run(hold(port, worker, process, 1))  # connections and caches are made by the first request
        worker.taken.clear()
        idle_mib, cpu_before_s = memory_mib(process), cpu_s(process)
        open_s, held_mib, answers_s = asyncio.run(hold(port, worker, process, count))
        return Run(
            idle_mib=idle_mib,
            held_mib=held_mib,
            cpu_s=(cpu_s(process) - cpu_before_s) / count,
            open_s=open_s,
            answers_s=answers_s,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="a web process with many open requests")
    parser.add_argument("--requests", type=int, default=1000)
    count = parser.parse_args().requests
    # A connection is a file here and another one there.
    open_files.allow(4 * count + 1000)
    os.environ.update(credential.fresh(), AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
    with running([sys.executable, "-m", "faceapp.local.aws", "--port", "0"], "listening on ") as (url, _):
        os.environ["AWS_ENDPOINT_URL"] = url
        run = measure(count)
    print_table(
        [f"{count} requests open", "idle MiB", "MiB", "CPU ms a request", "open s", "answer p50 s", "p99 s"],
        [
            [
                "",
                f"{run.idle_mib:.0f}",
                f"{run.held_mib:.0f}",
                f"{1000 * run.cpu_s:.1f}",
                f"{run.open_s:.1f}",
                f"{statistics.median(run.answers_s):.2f}",
                f"{statistics.quantiles(run.answers_s, n=100)[98]:.2f}",
            ]
        ],
    )


if __name__ == "__main__":
    main()
