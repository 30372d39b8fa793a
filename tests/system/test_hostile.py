"""S2: one request of each shape that was made to cost more than its bytes, and what becomes of it. Times are the
benchmark's (benchmarks.hostile), which posts the same shapes at full size."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from benchmarks import shapes
from benchmarks.hostile import post
from faceapp.config import Settings
from tests.support.services import REPOSITORY, environ, wait_until
from tests.support.web import web_server
from tests.system.test_web_overload import Web

PHOTO_BYTES = 1_000_000
REQUEST_BYTES = 4_000_000
SHAPES = [*shapes.known(PHOTO_BYTES, REQUEST_BYTES), *shapes.made_up(1, 28, PHOTO_BYTES)]
STATUSES = {
    "60 parts with many options": {"400"},
    "60 parts with heads just allowed": {"413"},
    "a line without end": {"400"},
    "lines without end": {"400"},
    "folded lines": {"400"},
    "tiny text parts": {"413"},
    "chunks of a byte": {"400"},
    "a chunk's extension": {"400"},
    "a head of many fields": {"431", "ConnectionResetError"},
    "many preferences": {"415"},
    "announced and silent": {"-"},
    "chunked and silent": {"-"},
    "begun and silent": {"-"},
}
OTHERWISE = {"202", "400", "413", "415", "422"}


FILES = 32
MEANWHILE = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from tests.unit.test_images_bounds import STRANGERS
from tests.support.web import File, client_of

client, data = client_of(), STRANGERS[sys.argv[1]](int(sys.argv[2]))
other = client.application.test_client()
photos = [File(data) for _ in range(int(sys.argv[3]))]
other.get("/healthz")
post = gevent.spawn(client.post, "/v1/recognitions", data={"photo": photos})
answered = 0
while not post.ready():
    gevent.sleep(0)
    answered += other.get("/healthz").status_code == 200
print(post.get().status_code, answered)
"""


@pytest.fixture(scope="module")
def web(aws_endpoint: str, system: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A web process with the settings that it comes with."""
    with web_server(aws_endpoint, system, tmp_path_factory.mktemp("hostile") / "log") as (url, process):
        port = urlsplit(url).port
        assert port
        web = Web(port, psutil.Process(process.pid))
        wait_until(lambda: web.ask(path="/healthz")[0] == 200, what="an answer")
        yield web


@pytest.mark.parametrize("shape", SHAPES, ids=[each.name for each in SHAPES])
def test_a_hostile_request_is_answered_and_others_meanwhile(web: Web, shape: shapes.Shape) -> None:
    """S2: the answer is the one of its kind, /healthz answers all the time, and the process is the same."""
    pids = [each.pid for each in web.process.children()]
    answers: list[str] = []
    wire = shape.make()
    sender = threading.Thread(target=lambda: answers.append(post(web.port, wire, silent_s=1 if shape.silent else 0)))
    sender.start()
    assert web.ask(path="/healthz")[0] == 200
    while sender.is_alive():
        assert web.ask(path="/healthz")[0] == 200
    assert answers[0] in STATUSES.get(shape.name, OTHERWISE)
    assert [each.pid for each in web.process.children()] == pids


@pytest.mark.parametrize(
    ("name", "size_bytes"), [("avif, associations", 54_000), ("heic, boxes", 32_000), ("jpeg, empty APP14", 12_000)]
)
def test_others_are_answered_between_the_files_of_a_form(name: str, size_bytes: int) -> None:
    """S2: files up to 64 KiB were looked at one after the other, and nobody else was answered meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", MEANWHILE, name, str(size_bytes), str(FILES)],
        cwd=REPOSITORY,
        env=environ("http://127.0.0.1:9", Settings()),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    status, answered = map(int, done.stdout.split())
    assert status in {413, 415, 422}
    assert answered >= FILES - 1
