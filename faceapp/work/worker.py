"""What a worker does with one message: the work behind the tasks.

Nothing here knows more of Celery than how a time limit arrives. Work that is done twice (SQS delivers at least once)
writes the same objects again.
"""

from __future__ import annotations

import dataclasses
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from celery.exceptions import SoftTimeLimitExceeded

from faceapp.config import MIB, Settings, settings
from faceapp.errors import (
    EnrolmentError,
    FaceappError,
    GalleryFull,
    GalleryMismatch,
    ImageError,
    InvalidName,
    NotFound,
    PersonForgotten,
    RecognitionNotFound,
    RecognitionTooSlow,
)
from faceapp.observability import tracing
from faceapp.people import Gallery, NewPhoto
from faceapp.recognition import Description, Recogniser
from faceapp.schema import Enrolment, Face, Failure, PhotoFailure, Recognition, Timings
from faceapp.storage import Storage
from faceapp.work.forgetting import Forgetting

logger = logging.getLogger(__name__)


class Worker:
    """The model, the gallery and the storage of one worker process.

    Made in the parent process: the children share the model's memory and make connections of their own.
    """

    def __init__(self, settings: Settings) -> None:
        self._recogniser = Recogniser(**settings.model_options)
        self._storage = Storage(settings)
        self.forgetting = Forgetting(settings, self._storage)
        self._gallery = Gallery(
            self._storage,
            model=self._recogniser.model,
            dimension=self._recogniser.dimension,
            refresh_s=settings.gallery_refresh_s,
            max_photos=settings.gallery_max_photos,
        )
        self._time_limit_s = settings.task_soft_limit_s
        self._memory_bytes = settings.worker_memory_mib * MIB
        self._threshold = settings.largest_distance(self._recogniser.threshold)
        # However far the answers may be, who is told of at an enrolment is like the photo.
        self._alike = settings.threshold or self._recogniser.threshold
        self.trial_s = self._recogniser.rehearse()
        """What a photo takes on this machine, by a made-up one; None when that cannot be told before the first."""

    def warm(self) -> None:
        """Load the gallery; when S3 does not answer, the first search tries again."""
        self._gallery.refresh()

    def limit_memory(self) -> None:
        """Let this process take no more than `worker_memory_mib` on top of what it has: a task ends in a MemoryError
        then, where the machine would kill whatever is largest.
        """
        if not self._memory_bytes:
            return
        if self._recogniser.device == "cuda":
            logger.warning("a task's memory is not limited: CUDA maps far more than it uses")
            return
        try:
            with open("/proc/self/status", encoding="ascii") as status:
                used_kib = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
            hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (used_kib * 1024 + self._memory_bytes, hard_bytes))
        except (OSError, ValueError, StopIteration) as error:
            logger.warning("a task's memory is not limited here: %s", error or "no word of VmData")

    def recognise(self, request_id: str, *, queued_s: float = 0.0) -> Recognition | None:
        """Fetch the photo `request_id`, find and name its faces, store the result and return it.

        A photo that cannot be used gives a `failed` result; None, and nothing stored, when there is a result already.
        Raises StorageUnavailable; the work can be tried again.
        """
        began_s, started_s = time.time(), time.perf_counter()
        file_name = ""
        try:
            stored = self._storage.get_photo(request_id)
            file_name = stored.file_name
            fetch_s = time.perf_counter() - started_s
            with self._in_time():
                description = self._recogniser.describe(stored.data)
            faces, search_s = self._name(description)
            result = Recognition(
                id=request_id,
                status="done",
                file_name=file_name,
                photo=description.photo,
                faces=faces,
                model=self._recogniser.model,
                gallery_version=self._gallery.version,
                timings=Timings(
                    queued_s=queued_s,
                    fetch_s=fetch_s,
                    decode_s=description.decode_s,
                    detect_s=description.detect_s,
                    align_s=description.align_s,
                    embed_s=description.embed_s,
                    search_s=search_s,
                    total_s=time.perf_counter() - started_s,
                ),
            )
        except (ImageError, NotFound, RecognitionTooSlow) as error:
            timings = Timings(queued_s=queued_s, total_s=time.perf_counter() - started_s)
            result = Recognition(
                id=request_id, status="failed", file_name=file_name, failure=Failure.of(error), timings=timings
            )
        tracing.stages(began_s, _stages(result.timings))
        with tracing.span("store result", kind="CLIENT"):
            if result.failure is None:
                self._storage.put_result(result)
            # Of a photo that somebody deleted, or that expired, nothing is to stay.
            elif result.failure.code != RecognitionNotFound.code and not self._storage.put_failed(result):
                logger.info("%s: %s, but there is a result", request_id, result.failure.code)
                return None
        outcome = f"{len(result.faces)} faces" if result.failure is None else result.failure.code
        times = result.timings
        logger.info("%s: %s, %.3f s after %.3f s in the queue", request_id, outcome, times.total_s, times.queued_s)
        return result

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Raise RecognitionTooSlow where the task's time is over while it looks at a photo.

        The next try would take as long. Waits for S3 are not meant, which may be shorter then.
        """
        try:
            yield
        except SoftTimeLimitExceeded:
            raise RecognitionTooSlow(
                f"Looking at the photo took longer than {self._time_limit_s} s, so it is not tried again: "
                "send a smaller one."
            ) from None

    def _name(self, description: Description) -> tuple[tuple[Face, ...], float]:
        started_s = time.perf_counter()
        self._gallery.refresh()
        matches = self._gallery.search_many(
            [face.descriptor for face in description.faces],
            low_resolution=[face.low_resolution for face in description.faces],
            threshold=self._threshold,
        )
        faces = tuple(
            Face(
                box=face.box,
                landmarks=face.landmarks,
                score=face.score,
                name=match.name,
                distance=match.distance,
                candidates=match.candidates,
            )
            for face, match in zip(description.faces, matches, strict=True)
        )
        return faces, time.perf_counter() - started_s

    def enrol(self, request_id: str) -> Enrolment:
        """Enrol the photos that wait under `request_id`: all of them, or none if one cannot be used.

        Raises StorageUnavailable, and then nothing is enrolled; the work can be tried again. Raises NotFound when
        nothing waits.
        """
        waiting = [self._storage.get_incoming(request_id, n) for n in self._storage.list_incoming(request_id)]
        if not waiting:
            raise NotFound(f"no photos wait to be enrolled under {request_id}")
        found: list[NewPhoto] = []
        failures: list[PhotoFailure] = []
        for photo in waiting:
            try:
                with self._in_time():
                    face = self._recogniser.describe_for_enrolment(photo.data)
            except (ImageError, EnrolmentError, RecognitionTooSlow) as error:
                failures.append(PhotoFailure(file_name=photo.file_name, code=error.code, detail=error.detail))
                if isinstance(error, RecognitionTooSlow):
                    # No second warning comes: the next photo would take the process with it.
                    break
            else:
                found.append(NewPhoto(data=photo.data, descriptor=face.descriptor, low_descriptor=face.low_descriptor))
        enrolment = Enrolment(id=request_id, name=waiting[0].name, failures=tuple(failures))
        if self.forgetting.is_forgotten(enrolment.name, waiting[0].last_modified):
            enrolment = _refused(enrolment, PersonForgotten())
        elif not failures:
            enrolment = self._store(enrolment, found)
        self._storage.delete_incoming(request_id)
        logger.info("%s: %d photos enrolled, %d refusals", request_id, len(enrolment.photos), len(enrolment.failures))
        return enrolment

    def _store(self, enrolment: Enrolment, photos: list[NewPhoto]) -> Enrolment:
        """The enrolment when its photos are in the gallery, or with the reason why they cannot be."""
        try:
            notices = self._gallery.notices(enrolment.name, photos, threshold=self._alike)
            photo_ids = self._gallery.enrol(enrolment.name, photos, request_id=enrolment.id)
        except (GalleryMismatch, GalleryFull, InvalidName) as error:
            return _refused(enrolment, error)
        return dataclasses.replace(enrolment, photos=tuple(photo_ids), notices=notices)


def _refused(enrolment: Enrolment, error: FaceappError) -> Enrolment:
    """The enrolment when the reason lies in no photo."""
    failure = PhotoFailure(file_name="", code=error.code, detail=error.detail)
    return dataclasses.replace(enrolment, failures=(failure,))


def _stages(timings: Timings) -> dict[str, float]:
    """The stages that a photo came through, in their order, in seconds."""
    stages = {
        "fetch": timings.fetch_s,
        "decode": timings.decode_s,
        "detect": timings.detect_s,
        "align": timings.align_s,
        "embed": timings.embed_s,
        "search": timings.search_s,
    }
    return {name: seconds for name, seconds in stages.items() if seconds > 0}


@cache
def this_worker() -> Worker:
    """This process's worker, made at the first call (in the parent, before the pool forks)."""
    started_s = time.perf_counter()
    worker = Worker(settings())
    logger.info("the %s model is loaded, in %.1f s", settings().embedder, time.perf_counter() - started_s)
    return worker
