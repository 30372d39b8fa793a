"""`faceapp bench load` against servers that answer wrongly, and against none: the books must show it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from celery_sqs.quantiles import nearest_rank
from faceapp.bench.load import Options, Run, load
from faceapp.bench.photos import Photo, find_photos, in_turn
from faceapp.bench.report import document, plot
from faceapp.cli import main
from faceapp.errors import BadRequest, ServiceUnreachable

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def server(answer: Callable[[int, str], Answer | None]) -> Iterator[str]:
    """A server whose `answer` gets each request's number and file stem; None closes the connection without a word."""
    lock, count = threading.Lock(), iter(range(1000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(200 if self.path == "/healthz" else 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = re.search(rb'filename="([^"]+)\.', body)
            assert name
            with lock:
                n = next(count)
            given = answer(n, name[1].decode())
            if given is None:
                return
            status, headers, text = given
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def options(url: str, **more: Any) -> Options:
    given = {"api": "classic", "concurrency": 4, "timeout_s": 20, "limit_s": 60, "most_failures": 100, **more}
    return Options(url=url, **given)


def photos(count: int = 4) -> list[Photo]:
    return [Photo(file_name=f"ada-{n}.jpg", data=b"photo", expected="ada") for n in range(count)]


def run(answer: Callable[[int, str], Answer | None], count: int = 4, **more: Any) -> Run:
    with server(answer) as url:
        return load(options(url, **more), photos(count))


def line(text: str, request_id: str = "") -> Answer:
    return 200, {"X-Request-ID": request_id} if request_id else {}, text.encode()


def test_right_answers_are_counted_and_timed() -> None:
    ticks: list[Run] = []
    with server(lambda n, stem: line(f"{stem}:ada", str(n))) as url:
        books = load(options(url), photos(), tick=ticks.append)
    assert books.counts() == {"right": 4}
    assert books.sound
    assert len(ticks) == 4
    assert all(0 <= each.sent_s < each.answered_s <= books.wall_s for each in books.outcomes)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda n, stem: line(f"{stem}:bob", str(n)), "wrong"),
        (lambda n, stem: line(f"other{n}:ada", str(n)), "crossed"),
        (lambda n, stem: line(f"{stem}:ada\n{stem}:ada", str(n)), "doubled"),
        (lambda n, stem: line("nothing of use", str(n)), "error"),
        (lambda n, stem: (500, {}, b"broken"), "error"),
        (lambda n, stem: (503, {"Retry-After": "1"}, b"later"), "refused"),
        (lambda n, stem: None, "lost"),
    ],
)
def test_what_is_not_right_is_counted_as_what_it_is(answer: Callable[[int, str], Answer | None], kind: str) -> None:
    books = run(answer)
    assert books.counts() == {kind: 4}
    assert not books.sound


def test_one_id_in_two_answers_is_doubled() -> None:
    assert run(lambda n, stem: line(f"{stem}:ada", "same"), 2).counts() == {"right": 1, "doubled": 1}


def test_a_refused_photo_comes_again_when_asked_to() -> None:
    def answer(n: int, stem: str) -> Answer:
        return (503, {"Retry-After": "1"}, b"") if n < 2 else line(f"{stem}:ada", str(n))

    books = run(answer, 2, retry=True)
    assert books.counts() == {"right": 2}
    assert sum(each.refusals for each in books.outcomes) == 2


@pytest.mark.slow
def test_no_answer_in_time_is_lost() -> None:
    released = threading.Event()

    def answer(n: int, stem: str) -> Answer:
        if n == 0:
            released.wait(240)
        return line(f"{stem}:ada", str(n))

    with server(answer) as url:
        # It has to run out for one, and the others have to be answered within it.
        books = load(options(url, timeout_s=10), photos())
        released.set()
    assert books.counts() == {"right": 3, "lost": 1}


def test_too_many_failures_end_it() -> None:
    books = run(lambda n, stem: (500, {}, b"broken"), 50, most_failures=3, concurrency=1)
    assert books.counts() == {"error": 3, "not sent": 47}
    assert "500: broken" in books.stopped


def test_its_time_ends_it() -> None:
    released = threading.Event()

    def answer(n: int, stem: str) -> None:
        released.wait(240)

    with server(answer) as url:
        books = load(options(url, limit_s=0.5, concurrency=1), photos())
        released.set()
    assert books.counts() == {"lost": 1, "not sent": 3}
    assert "0.5 s" in books.stopped


def test_nothing_that_answers_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnreachable, match="Nothing answers"):
        load(options("http://127.0.0.1:1"), photos())
    Image.new("RGB", (8, 8)).save(tmp_path / "ada1.jpg")
    found = CliRunner().invoke(main, ["bench", "load", "http://127.0.0.1:1", "--images", str(tmp_path)])
    assert found.exit_code == 1
    assert "Nothing answers" in found.output


def test_names_come_from_folders_and_from_file_names(tmp_path: Path) -> None:
    (tmp_path / "bob").mkdir()
    for name in ("ada1.jpg", "ada_2.jpg", "stranger3.jpg", "bob/any.png"):
        (tmp_path / name).write_bytes(name.encode())
    found = find_photos(tmp_path, people={"ada", "bob"})
    assert [name for _, name in found] == ["ada", "ada", None, "bob"]
    uploads = in_turn(found, 9)
    assert len({each.file_name for each in uploads}) == 9
    assert uploads[4].data == uploads[0].data == b"ada1.jpg"
    with pytest.raises(BadRequest):
        find_photos(tmp_path / "nobody", people=set())


def test_the_command_draws_and_writes_what_it_found(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "ada1.jpg")
    with server(lambda n, stem: line(f"{stem}:ada", str(n))) as url:
        arguments = ["--images", tmp_path, "--concurrency", 3, "--plot", tmp_path / "p.png", "--json", tmp_path / "j"]
        found = CliRunner().invoke(main, ["bench", "load", url, *map(str, arguments)])
    assert found.exit_code == 0, found.output
    assert '"unchecked": 3' in (tmp_path / "j").read_text()
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.format == "PNG"


def test_quantiles_are_of_what_was_measured(tmp_path: Path) -> None:
    assert [nearest_rank([1, 2, 3, 4], share) for share in (0.5, 0.99, 1.0)] == [2, 4, 4]
    books = run(lambda n, stem: line(f"{stem}:ada", str(n)), 2)
    latencies = sorted(each.latency_s for each in books.outcomes)
    assert document(books)["latency_s"]["max"] == latencies[-1]
    plot([books], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
