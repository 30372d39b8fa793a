"""A whole service for a test of faults, a burst of photos, and the books afterwards.

The services are processes on a stack of their own in the session's embedded AWS. What is looked at here goes to that
directly, whatever way the services take to it.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import psutil
import urllib3
from PIL import Image

from faceapp.config import Settings
from faceapp.errors import FaceappError
from faceapp.local import compute
from faceapp.local.processes import Service, Services
from faceapp.local.up import IMAGE
from faceapp.operations.dead_letters import DeadLetters
from faceapp.operations.samples import sample_photos
from faceapp.schema import Recognition
from faceapp.stack import data_tier as deployment
from faceapp.storage import Storage
from tests.faults.faulty import HOLDS, LET_GO
from tests.support.aws import BEARER, plain_client
from tests.support.services import PATIENCE_S, environ, free_ports, wait_until

FAULTY = "tests.faults.faulty"
HOST = f"import {FAULTY}; from faceapp.local import compute; compute.main()"
"""The compute host, whose workers do what the photos say, too."""
GRACE_S = 0.2
"""At the end of a test: everything is on the books, and nobody uses these queues again."""
PHOTO_PX = 512
"""The longer side of what is posted: the recogniser looks at no more anyway."""
PEOPLE: Mapping[str, str] = {"obama3.jpg": "obama", "biden.jpg": "biden", "astronaut.png": "eileen_collins"}
"""What is posted, and who is on it."""

Kind = Literal["classic", "wait", "later"]
"""How a photo is posted: `POST /`, or `POST /v1/recognitions` with `Prefer: wait` or without."""


@dataclass(frozen=True)
class Photo:
    """A photo that nobody else posts, by its name and by its bytes."""

    name: str
    data: bytes
    expected: str | None
    """Who is on it; None where the photo is not to be recognised."""


@dataclass(frozen=True)
class Reply:
    """What came back for one photo."""

    photo: Photo
    kind: Kind
    status: int | None
    """None when the connection ended without an answer."""
    body: str
    request_id: str = ""
    """The answer's X-Request-ID, which is the photo's id in `POST /`."""

    @property
    def item(self) -> dict[str, Any]:
        """The one photo's item of an answer of /v1."""
        [item] = json.loads(self.body)["recognitions"]
        assert isinstance(item, dict)
        return item

    @property
    def id(self) -> str | None:
        """The id that the client was told; None if it was told none."""
        if self.status not in (200, 202):
            return None
        return self.request_id if self.kind == "classic" else str(self.item["id"])


class System:
    """Processes of a service, each started and stopped as a test likes; `running` makes one."""

    def __init__(self, settings: Settings, services: Services, folder: Path, *, aws: str, web_port: int) -> None:
        self.settings, self.services, self.folder = settings, services, folder
        self.url = f"http://127.0.0.1:{web_port}"
        self.storage = Storage(settings)
        self.s3, self.sqs, self.ec2 = (plain_client(service, aws) for service in ("s3", "sqs", "ec2"))
        self.queue_url = str(self.sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"])
        self.web: Service | None = None
        self.workers: list[Service] = []
        self._numbers: Counter[str] = Counter()

    # The processes.

    def start(self, name: str, *command: str, **environment: str) -> Service:
        """Start a Python program under a name, with a number behind it, and these variables besides everybody's."""
        self._numbers[name] += 1
        given = [f"{variable}={value}" for variable, value in environment.items()]
        return self.services.start(f"{name} {self._numbers[name]}", ["env", *given, sys.executable, *command])

    def start_web(self, **environment: str) -> Service:
        """Start the web tier, at the same address each time, and wait until it answers."""
        self.web = web = self.start("web", "-m", "faceapp", "web", **environment)
        self.services.wait_for(lambda: self.get("/healthz") == 200, timeout_s=240, what="The web tier does not answer")
        return web

    def start_worker(self, *options: str, app: str = FAULTY, **environment: str) -> Service:
        """Start a worker of one process, or of what the options say, and wait until it takes messages."""
        worker = self.begin_worker(*options, app=app, **environment)
        self.wait_for_worker(worker)
        return worker

    def begin_worker(self, *options: str, app: str = FAULTY, **environment: str) -> Service:
        """Start a worker, which will be there soon."""
        name = f"worker-{self._numbers['worker'] + 1}"
        command = ["-m", "celery", "-A", app, "worker", "--loglevel", "INFO", "--concurrency", "1"]
        worker = self.start("worker", *command, "--hostname", f"celery@{name}", *options, **environment)
        self.workers.append(worker)
        return worker

    def wait_for_worker(self, worker: Service) -> None:
        self.services.wait_for(
            lambda: " ready." in worker.log.read_text(), timeout_s=240, what=f"The {worker.name} is not ready"
        )

    def start_scaler(self) -> Service:
        """Start the scaler, which starts instances for what is in the queue."""
        return self.start("scaler", "-m", "faceapp", "scaler")

    def start_host(self) -> Service:
        """Start what makes the embedded EC2's instances real workers."""
        host = self.start("host", "-c", HOST, "--logs", str(self.services.log_folder))
        self.services.wait_for(
            lambda: compute.READY in host.log.read_text(), timeout_s=240, what="The compute host is not ready"
        )
        return host

    def kill(self, service: Service, *, group: bool = False) -> None:
        """Kill a process with SIGKILL, or everything below it as well, and forget it."""
        victims = [psutil.Process(service.process.pid)]
        if group:
            victims += victims[0].children(recursive=True)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        service.process.wait()
        self.services.running.remove(service)

    def end(self, service: Service, *, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit status when the process has ended by itself."""
        service.process.send_signal(signal.SIGTERM)
        self.services.running.remove(service)
        return service.process.wait(timeout_s)

    # What a HOLDS photo does.

    def held(self) -> list[int]:
        """The processes that hold one."""
        return [int(each.stem) for each in self.folder.glob("*.held")]

    def wait_for_held(self) -> int:
        """The process that holds one, as soon as there is one."""
        self.services.wait_for(lambda: bool(self.held()), timeout_s=240, what="No photo is at work")
        return self.held()[0]

    def let_go(self) -> None:
        (self.folder / LET_GO).touch()

    # What there is.

    def get(self, path: str) -> int:
        """The status of a GET; 0 when nobody answers."""
        try:
            return self._request("GET", path, timeout=240).status
        except urllib3.exceptions.HTTPError:
            return 0

    def result(self, request_id: str) -> dict[str, Any]:
        """What the web tier says to the photo's id."""
        document = self._request("GET", f"/v1/recognitions/{request_id}", timeout=240).json()
        assert isinstance(document, dict)
        return document

    def enrol(self, name: str, photos: Sequence[Path]) -> None:
        """Have a worker enrol the photos."""
        fields = [("photo", (each.name, each.read_bytes(), "image/jpeg")) for each in photos]
        answer = self._request("PUT", f"/v1/people/{name}", timeout=240, fields=fields)
        assert answer.status == 201, answer.data

    def _request(self, method: str, path: str, *, timeout: float, **more: Any) -> urllib3.BaseHTTPResponse:
        # A connection that stayed open would be waited for by a web tier that is told to leave.
        headers = {"Connection": "close", **BEARER}
        return urllib3.request(method, f"{self.url}{path}", headers=headers, retries=False, timeout=timeout, **more)

    def keys(self, bucket: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def results(self) -> list[str]:
        """The ids of the photos that have a result."""
        return self.keys(self.settings.out_bucket)

    def photos(self) -> dict[str, list[str]]:
        """The ids of the photos that were stored, by their files' names; more than one is one too many."""
        found: dict[str, list[str]] = {}
        for key in self.keys(self.settings.in_bucket):
            if photo := self.storage.photo_exists(key):
                found.setdefault(photo.file_name, []).append(key)
        return found

    def messages(self) -> int:
        """How many messages the request queue has, with those in flight."""
        names = [f"ApproximateNumberOfMessages{each}" for each in ("", "NotVisible", "Delayed")]
        counts = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(count) for count in counts.values())

    def executions(self) -> Counter[str]:
        """How often each photo was recognised to the end, as the workers' logs say."""
        logs = [*self.services.log_folder.glob("worker-*.log"), *self.services.log_folder.glob("app-tier-*.log")]
        line = re.compile(r"faceapp\.work\.worker: ([0-9a-f]{32}): ")
        return Counter(found for log in logs for found in line.findall(log.read_text()))

    def instances(self) -> dict[str, str]:
        """The ids, by name, of the app-tier instances that run or are about to."""
        filters = [
            {"Name": "tag:faceapp:stack", "Values": [self.settings.prefix]},
            {"Name": "tag:Name", "Values": [f"{compute.APP_TIER}*"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        reservations = self.ec2.describe_instances(Filters=filters)["Reservations"]
        found = [instance for each in reservations for instance in each["Instances"]]
        return {tag["Value"]: each["InstanceId"] for each in found for tag in each["Tags"] if tag["Key"] == "Name"}


@contextmanager
def running(
    aws: str,
    folder: Path,
    *,
    endpoint: str | None = None,
    gallery: Mapping[str, bytes] | None = None,
    web: bool = True,
    workers: int = 1,
    scaler: bool = False,
    visibility_s: int | None = None,
    **settings: Any,
) -> Iterator[System]:
    """A service on a stack of its own in the embedded AWS at `aws`, all of it gone at the end of the block.

    `endpoint` is where the services look for AWS, if that is not `aws`. `gallery` is what the gallery's bucket has at
    the beginning, by key. `visibility_s` replaces the request queue's visibility timeout, which is half a minute more
    than the task's time limit. `settings` are the product's.
    """
    web_port, scaler_port = free_ports(2)
    own = Settings(
        **{
            "prefix": f"f{uuid.uuid4().hex[:12]}",
            "web_port": web_port,
            "scaler_port": scaler_port,
            "scaler_tick_s": 0.5,
            "scaler_boot_s": 4.0,
            "worker_image": IMAGE,
            "worker_type": "t3.micro",
            "web_wait_s": 120.0,
            "queue_wait_s": 2,
            "local_boot_min_s": 0.0,
            "local_boot_max_s": 0.0,
            **settings,
        }
    )
    deployment.apply(own)
    # The session's own credential stays.
    open_ones = [each.name for each in fields(own) if not each.metadata["rule"].secret]
    variables = {f"FACEAPP_{name.upper()}": str(getattr(own, name)) for name in open_ones}
    # The host of the instances cannot fork with a thread of numpy's, which is there before the product is asked.
    more = {"FAULTS_FOLDER": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    environment = environ(endpoint or aws, own, **more, **variables)
    with Services(folder / "logs", environment, grace_s=GRACE_S) as services:
        system = System(own, services, folder, aws=aws, web_port=web_port)
        if visibility_s is not None:
            attributes = {"VisibilityTimeout": str(visibility_s)}
            system.sqs.set_queue_attributes(QueueUrl=system.queue_url, Attributes=attributes)
        for key, data in (gallery or {}).items():
            system.s3.put_object(Bucket=own.gallery_bucket, Key=key, Body=data)
        started = [system.begin_worker() for _ in range(workers)]
        if scaler:
            system.start_host()
            system.start_scaler()
        if web:
            system.start_web()
        for worker in started:
            system.wait_for_worker(worker)
        yield system


# Photos.


@functools.cache
def _small(name: str) -> bytes:
    image = Image.open(sample_photos()[name]).convert("RGB")
    image.thumbnail((PHOTO_PX, PHOTO_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def commented(jpeg: bytes, comment: str) -> bytes:
    """The same picture with a comment in its file."""
    text = comment.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


_count = itertools.count()


def photo(*, does: str = "") -> Photo:
    """One more photo; what it `does` is one of `faulty`'s words."""
    number = next(_count)
    names = list(PEOPLE)
    of = names[number % len(names)]
    name = f"photo-{number}.jpg"
    return Photo(name, commented(_small(of), f"{name} {does}"), PEOPLE[of] if does in ("", HOLDS) else None)


# A burst.


class Burst:
    """Photos that are posted all at once, each from a thread and over a connection of its own."""

    def __init__(self, url: str, photos: Sequence[Photo], kinds: Sequence[Kind], *, wait_s: int) -> None:
        self.photos = list(photos)
        self._url, self._wait_s = url, wait_s
        self._replies: list[Reply] = []
        self._threads = [
            threading.Thread(target=self._post, args=(each, kind), daemon=True)
            for each, kind in zip(photos, itertools.cycle(kinds), strict=False)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def replies(self) -> list[Reply]:
        """What has come back so far, in the order in which it came."""
        return list(self._replies)

    def join(self, *, timeout_s: float = 200) -> list[Reply]:
        """Everything that came back, when nobody waits any more."""
        wait_until(lambda: len(self._replies) == len(self._threads), timeout_s=timeout_s, what="the last reply")
        return self.replies

    def _post(self, photo: Photo, kind: Kind) -> None:
        field, path = ("inputFile", "/") if kind == "classic" else ("photo", "/v1/recognitions")
        headers = BEARER | ({"Prefer": f"wait={self._wait_s}"} if kind == "wait" else {})
        fields = {field: (photo.name, photo.data, "image/jpeg")}
        try:
            with urllib3.PoolManager(retries=False, timeout=self._wait_s + 30) as pool:
                answer = pool.request("POST", f"{self._url}{path}", fields=fields, headers=headers)
                request_id = answer.headers.get("X-Request-ID", "")
                self._replies.append(Reply(photo, kind, answer.status, answer.data.decode().strip(), request_id))
        except urllib3.exceptions.HTTPError as error:
            self._replies.append(Reply(photo, kind, None, repr(error)))


def burst(
    system: System,
    n: int,
    *,
    more: Sequence[Photo] = (),
    kinds: Sequence[Kind] = ("classic", "wait", "later"),
    wait_s: int = 150,
) -> Burst:
    """Begin to post `n` photos, and `more` before them, in those ways in turn; `Burst.join` has what came back."""
    return Burst(system.url, [*more, *(photo() for _ in range(n))], kinds, wait_s=wait_s)


# The books.


@dataclass(frozen=True)
class Books:
    """What became of a burst."""

    accepted: int
    """Photos that were stored and not refused: those whose clients were cut off as well."""
    done: int
    failed: int
    """Those whose result says that they failed."""
    dead: int
    """Those whose message is a dead letter, mostly some of the failed."""
    refused: int
    """Those that were answered with 503, so that nothing of them need be there."""
    unanswered: int
    """Those whose connection ended without an answer, or whose answer says that it took too long."""
    again: int
    """How often a photo was recognised once more."""
    lost: tuple[str, ...]
    """What is wrong with the accepted photos that have neither a result nor a dead letter with a reason."""
    doubled: tuple[str, ...]
    """What is wrong with those that have two ids, or a name and a dead letter."""
    wrong: tuple[str, ...]
    """Names and answers that are not the right ones, or another's."""

    @property
    def balanced(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def books(system: System, *bursts: Burst, timeout_s: float = 120) -> Books:
    """Wait for the last reply and for an empty queue, and account for every photo of the bursts."""
    replies = [reply for each in bursts for reply in each.join()]
    wait_until(lambda: system.messages() == 0, timeout_s=timeout_s, what="an empty request queue")
    stored, executions = system.photos(), system.executions()
    letters = {each.request_id: each.reason for each in DeadLetters(system.settings).listing().letters}
    lost: list[str] = []
    doubled: list[str] = []
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    for reply in replies:
        name, ids = reply.photo.name, stored.get(reply.photo.name, [])
        if reply.status in (200, 202) and not ids:
            lost.append(f"{name}: answered {reply.status}, and not stored")
        if reply.status == 503:
            counts["refused"] += 1
            continue
        if not ids:
            continue
        counts["accepted"] += 1
        counts["unanswered"] += reply.status in (None, 504)
        if len(ids) > 1:
            doubled.append(f"{name}: stored as {', '.join(ids)}")
        [id, *_] = ids
        counts["again"] += max(0, executions[id] - 1)
        try:
            result = system.storage.get_result(id)
        except FaceappError as error:
            lost.append(f"{name}: its result cannot be read: {error}")
            continue
        counts["dead"] += id in letters
        if result is None:
            if not letters.get(id):
                lost.append(f"{name}: {id} has no result")
            continue
        counts[result.status] += 1
        if result.status == "done" and id in letters:
            doubled.append(f"{name}: {id} is done, and a dead letter")
        wrong += _wrong_result(reply.photo, id, result) + _wrong_reply(reply, id, result)
    return Books(
        accepted=counts["accepted"],
        done=counts["done"],
        failed=counts["failed"],
        dead=counts["dead"],
        refused=counts["refused"],
        unanswered=counts["unanswered"],
        again=counts["again"],
        lost=tuple(lost),
        doubled=tuple(doubled),
        wrong=tuple(wrong),
    )


def _wrong_result(photo: Photo, id: str, result: Recognition) -> list[str]:
    found = [f"{photo.name}: the result under {id} is {result.id}'s"] if result.id != id else []
    if result.status == "done":
        if result.file_name != photo.name:
            found.append(f"{photo.name}: its result is of {result.file_name}")
        if result.answer != photo.expected:
            found.append(f"{photo.name}: stored as {result.answer}, it is {photo.expected}")
    return found


def _wrong_reply(reply: Reply, id: str, result: Recognition) -> list[str]:
    """An answer must be the photo's own and say what its result says."""
    name = reply.photo.name
    if reply.id not in (None, id):
        return [f"{name}: answered with {reply.id}, it is {id}"]
    if reply.kind == "classic" and reply.status == 200:
        right = f"{name.removesuffix('.jpg')}:{result.answer}"
        return [] if reply.body == right and result.failure is None else [f"{name}: answered {reply.body!r}"]
    if reply.kind == "wait" and reply.status == 200:
        item = reply.item
        same = (item["status"], item["file_name"]) == (result.status, name)
        if not same or (result.failure is None and item["answer"] != result.answer):
            return [f"{name}: answered {item}"]
    if reply.status is not None and reply.status >= 400 and reply.status != 504:
        code = json.loads(reply.body).get("code")
        if result.failure is None or code != result.failure.code:
            return [f"{name}: answered {reply.status} {code}, and its result is {result.status}"]
    return []
