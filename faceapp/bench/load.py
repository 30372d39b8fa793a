"""Post many photos at once and keep books of every answer. Bounded: each answer, the whole run, and the failures."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from faceapp.bench.photos import Photo
from faceapp.bench.process import Usage, listeners, usage
from faceapp.errors import ServiceUnreachable
from faceapp.operations import open_files

Api = Literal["classic", "v1"]
Kind = Literal["right", "wrong", "unchecked", "crossed", "doubled", "refused", "lost", "error", "not sent"]
SAMPLE_S = 1.0
SETTLE_S = 15.0
"""How long open files may take to go down again after the last answer."""
FETCHES = 16
"""Result documents of classic answers that are fetched at once, afterwards."""
RETRY_S = (1.0, 30.0)
"""Retry-After is obeyed within these bounds."""
SPARE_FILES = 200


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to load `url`. `timeout_s` bounds one photo (with all its tries), `limit_s` the run."""

    url: str
    api: Api
    concurrency: int
    timeout_s: float
    limit_s: float
    most_failures: int
    retry: bool = False
    key: str = ""


@dataclass(kw_only=True)
class Outcome:
    """What became of one photo; times are seconds from the run's start."""

    kind: Kind = "not sent"
    sent_s: float = 0.0
    answered_s: float = 0.0
    id: str = ""
    refusals: int = 0
    """So often it was told to come later."""
    queued_s: float | None = None
    computing_s: float = 0.0
    detail: str = ""

    @property
    def latency_s(self) -> float:
        return self.answered_s - self.sent_s


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the service. `ready` is None when its scaler tells nothing."""

    at_s: float
    answered: int
    open: int
    ready: int | None
    web: Usage | None


@dataclass(kw_only=True)
class Run:
    """One run's books."""

    options: Options
    outcomes: list[Outcome]
    samples: list[Sample] = field(default_factory=list)
    before: Usage | None = None
    after: Usage | None = None
    wall_s: float = 0.0
    stopped: str = ""
    """Why it ended early, in a sentence."""

    def counts(self) -> Counter[str]:
        """How many photos of each kind."""
        return Counter(each.kind for each in self.outcomes)

    @property
    def answered(self) -> list[Outcome]:
        """Everything that was answered 200."""
        kinds = ("right", "wrong", "unchecked", "crossed", "doubled")
        return [each for each in self.outcomes if each.kind in kinds]

    @property
    def sound(self) -> bool:
        """Whether every photo was answered and none wrongly."""
        return not self.stopped and set(self.counts()) <= {"right", "unchecked"}

    def booting_s(self, outcome: Outcome) -> float:
        """The part of a photo's queueing during which no worker was ready, as far as the samples tell."""
        if outcome.queued_s is None:
            return 0.0
        end_s = outcome.answered_s - outcome.computing_s
        start_s = max(outcome.sent_s, end_s - outcome.queued_s)
        spans = zip(self.samples, self.samples[1:], strict=False)
        return sum(
            max(0.0, min(end_s, later.at_s) - max(start_s, earlier.at_s))
            for earlier, later in spans
            if earlier.ready == 0
        )


def load(options: Options, photos: list[Photo], *, tick: Callable[[Run], None] = lambda _: None) -> Run:
    """Post all photos, at most `concurrency` at once; `tick` is called after each answer.

    Ends early, and says so in `stopped`, when too many fail, when the time is over, and at Ctrl-C. Raises
    ServiceUnreachable when nothing answers before the first photo.
    """
    open_files.allow(options.concurrency + SPARE_FILES)
    run = Run(options=options, outcomes=[Outcome() for _ in photos])
    with suppress(KeyboardInterrupt):
        asyncio.run(_Load(run, photos, tick).run())
    return run


class _Load:
    def __init__(self, run: Run, photos: list[Photo], tick: Callable[[Run], None]) -> None:
        self._run, self._options, self._photos, self._tick = run, run.options, photos, tick
        self._started_s = time.monotonic()
        self._open = self._failures = 0
        self._ids: set[str] = set()
        self._web: list[int] = []

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._options.key}"} if self._options.key else {}
        # A connection for each request, as classic clients do.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as self._http:
            await self._check()
            self._web = listeners(self._options.url)
            self._run.before = usage(self._web)
            self._started_s = time.monotonic()
            watch = asyncio.create_task(self._watch())
            try:
                await self._post_all()
            except asyncio.CancelledError:
                self._run.stopped = "It was interrupted."
                raise
            finally:
                self._run.wall_s = self._now_s()
                watch.cancel()
                self._run.samples.append(self._sample(None))
            await self._fetch_timings()
        await self._settle()

    async def _check(self) -> None:
        url = f"{self._options.url}/healthz"
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServiceUnreachable(
                f"Nothing answers at {self._options.url}: is faceapp running there? (The argument URL or "
                "FACEAPP_WEB_PORT says where it is.)"
            ) from error

    async def _post_all(self) -> None:
        todo = iter(range(len(self._photos)))
        clients = [
            asyncio.create_task(self._client(todo)) for _ in range(min(self._options.concurrency, len(self._photos)))
        ]
        try:
            done, left = await asyncio.wait(clients, timeout=self._options.limit_s, return_when=asyncio.FIRST_EXCEPTION)
            if left and not self._run.stopped:
                self._run.stopped = f"The run took longer than {self._options.limit_s:g} s."
            for each in done:
                each.result()
        finally:
            for each in clients:
                each.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, todo: Iterator[int]) -> None:
        for n in todo:
            if self._run.stopped:
                return
            outcome = self._run.outcomes[n]
            outcome.sent_s, outcome.kind = self._now_s(), "lost"
            self._open += 1
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    await self._post(self._photos[n], outcome)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                outcome.kind, outcome.detail = "lost", f"{type(error).__name__}: {error}"
            finally:
                self._open -= 1
                outcome.answered_s = self._now_s()
            self._judge(outcome)
            self._tick(self._run)

    def _judge(self, outcome: Outcome) -> None:
        if outcome.kind in ("lost", "error"):
            self._failures += 1
            if self._failures >= self._options.most_failures and not self._run.stopped:
                self._run.stopped = f"{self._failures} photos got no answer or an error; the last: {outcome.detail}"

    async def _post(self, photo: Photo, outcome: Outcome) -> None:
        classic = self._options.api == "classic"
        path, name = ("/", "inputFile") if classic else ("/v1/recognitions", "photo")
        headers = {} if classic else {"Prefer": f"wait={self._options.timeout_s:.0f}"}
        while True:
            form = aiohttp.FormData()
            form.add_field(name, photo.data, filename=photo.file_name, content_type="application/octet-stream")
            async with self._http.post(
                f"{self._options.url}{path}", data=form, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
            ) as answer:
                text = (await answer.read()).decode(errors="replace")
                status, given = answer.status, answer.headers
            if status != 503:
                break
            outcome.refusals += 1
            if not self._options.retry:
                outcome.kind, outcome.detail = "refused", text
                return
            asked = given.get("Retry-After", "")
            await asyncio.sleep(min(max(float(asked) if asked.isdigit() else 0.0, RETRY_S[0]), RETRY_S[1]))
        if status != 200:
            outcome.kind, outcome.detail = "error", f"{status}: {text[:200]}"
            return
        outcome.id = given.get("X-Request-ID", "")
        try:
            (_read_classic if classic else _read_v1)(photo, text, outcome)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            outcome.kind, outcome.detail = "error", f"200 with what cannot be read ({error}): {text[:200]}"
            return
        if outcome.id and outcome.id in self._ids:
            outcome.kind, outcome.detail = "doubled", f"{outcome.id} was another answer's id, too"
        self._ids.add(outcome.id)

    async def _watch(self) -> None:
        while True:
            self._run.samples.append(self._sample(await self._ready()))
            await asyncio.sleep(SAMPLE_S)

    def _sample(self, ready: int | None) -> Sample:
        answered = sum(each.answered_s > 0 for each in self._run.outcomes)
        return Sample(at_s=self._now_s(), answered=answered, open=self._open, ready=ready, web=usage(self._web))

    async def _ready(self) -> int | None:
        try:
            document = await self._get("/v1/scaler")
            return int(document["instances"]["ready"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return None

    async def _fetch_timings(self) -> None:
        """What result documents say of classic answers, which say no times; one that cannot be had stays unknown."""
        gate = asyncio.Semaphore(FETCHES)

        async def fetch(outcome: Outcome) -> None:
            async with gate:
                with suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
                    _take_timings(outcome, await self._get(f"/v1/recognitions/{outcome.id}"))

        missing = [each for each in self._run.answered if each.id and each.queued_s is None]
        await asyncio.gather(*(fetch(each) for each in missing))

    async def _get(self, path: str) -> Any:
        async with self._http.get(
            f"{self._options.url}{path}", timeout=aiohttp.ClientTimeout(total=10), raise_for_status=True
        ) as answer:
            return await answer.json()

    async def _settle(self) -> None:
        """What the web tier holds once the last connections are gone, or after a while."""
        before, until_s = self._run.before, time.monotonic() + SETTLE_S
        self._run.after = usage(self._web)
        while before and self._run.after and self._run.after.files > before.files and time.monotonic() < until_s:
            await asyncio.sleep(0.2)
            self._run.after = usage(self._web)

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s


def _read_classic(photo: Photo, text: str, outcome: Outcome) -> None:
    lines = text.strip().splitlines()
    stem, colon, name = lines[0].rpartition(":") if lines else ("", "", "")
    if not colon:
        raise ValueError("no <file name>:<name>")
    _compare(photo, outcome, answers=len(lines), same=stem == photo.stem, name=name)


def _read_v1(photo: Photo, text: str, outcome: Outcome) -> None:
    items = json.loads(text)["recognitions"]
    item = items[0]
    if item["status"] == "failed":
        raise ValueError(item["failure"]["code"])
    name = item["faces"][0]["name"] if item["faces"] else "no_face"
    _compare(photo, outcome, answers=len(items), same=item["file_name"] == photo.file_name, name=name)
    outcome.id = item["id"]
    _take_timings(outcome, item)


def _compare(photo: Photo, outcome: Outcome, *, answers: int, same: bool, name: str) -> None:
    if not same:
        outcome.kind = "crossed"
    elif answers > 1:
        outcome.kind = "doubled"
    elif photo.expected is None:
        outcome.kind = "unchecked"
    else:
        outcome.kind = "right" if name == photo.expected else "wrong"
    if outcome.kind in ("crossed", "doubled", "wrong"):
        outcome.detail = f"{photo.file_name} (expected: {photo.expected}) was answered with {name}"


def _take_timings(outcome: Outcome, document: Any) -> None:
    timings = document["timings"]
    outcome.computing_s, outcome.queued_s = float(timings["total_s"]), float(timings["queued_s"])
