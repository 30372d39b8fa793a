"""What is said about a photo that no worker could finish: a failed result in S3, and the same to whoever waits.

Asked for by a worker's event loop when the process of a task was lost or killed, so it takes seconds at most, whatever
S3 does. The photos stay where they are: the message is a dead letter, and sent again it may still succeed.
"""

from __future__ import annotations

import logging

from faceapp.broker import GivenUp
from faceapp.broker.messages import ENROL, ERASE, FORGET, RECOGNIZE
from faceapp.config import Settings
from faceapp.errors import FaceappError, NotFound, RecognitionExpired, RecognitionFailed, StorageUnavailable
from faceapp.schema import Enrolment, Failure, PhotoFailure, Recognition
from faceapp.storage import Storage

logger = logging.getLogger(__name__)

CLOCKS_AGREE_S = 2.0
"""How long a photo waited is told by SQS's clock, which answers in whole seconds, and by this machine's between."""
ASIDE = "it is put aside for somebody to look at."


class Undertaker:
    """Makes the answers to tasks that are given up. Any process may call any method."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._storage = Storage(settings, quick=True)

    def give_up(self, task: GivenUp) -> Recognition | Enrolment | None:
        """The answer to a task that has failed for good, which is stored first if S3 takes it.

        None where there is a result already: whoever waits finds it in S3. Raises ValueError for any other task.
        """
        error = RecognitionFailed(self._sentence(task.error))
        if task.task == RECOGNIZE:
            return self.fail(str(task.arguments[0]), error)
        if task.task == ENROL:
            return self.fail_enrolment(str(task.arguments[0]), error)
        if task.task in (FORGET, ERASE):
            logger.error("%s %s is given up (%s): forget anew", task.task, task.arguments[0], task.error)
            return None
        raise ValueError(f"nothing is known about the task {task.task}")

    def is_expired(self, queued_s: float) -> bool:
        """Whether a photo waited for longer than it may."""
        return queued_s > self._settings.queue_age_s + CLOCKS_AGREE_S

    def expired(self) -> RecognitionExpired:
        """Why such a photo is not looked at."""
        return RecognitionExpired(
            f"The photo waited in the queue for longer than {self._settings.queue_age_s} s: it was not looked at, "
            "send it again."
        )

    def fail(self, request_id: str, error: FaceappError) -> Recognition | None:
        """Store a failed result, and return it; None where there is a result already.

        Nothing is stored of a photo that is not there: it was deleted, and so is its result to be.
        """
        file_name = ""
        try:
            photo = self._storage.photo_exists(request_id)
            file_name = photo.file_name if photo else ""
            failed = Recognition(id=request_id, status="failed", file_name=file_name, failure=Failure.of(error))
            if photo is None:
                return None if self._storage.result_exists(request_id) else failed
            if not self._storage.put_failed(failed):
                return None
        except StorageUnavailable as unavailable:
            # Whoever waits is told all the same.
            logger.error("the failure of %s is not stored: %s", request_id, unavailable)
            failed = Recognition(id=request_id, status="failed", file_name=file_name, failure=Failure.of(error))
        logger.error("%s: given up: %s", request_id, error.detail)
        return failed

    def fail_enrolment(self, request_id: str, error: FaceappError, *, drop: bool = False) -> Enrolment | None:
        """The answer to an enrolment that did not happen; its photos wait on, or go with `drop`.

        What a killed task had enrolled of them is taken back; if that is all of them, they are enrolled, and this says
        so. None when none waits: another delivery has done it.
        """
        # Not before tasks._worker has said how many threads numpy may start: with more a compute host cannot fork.
        from faceapp.people.enrolment import settle
        from faceapp.people.people import photo_id_from

        name = file_name = ""
        try:
            waiting = [self._storage.head_incoming(request_id, n) for n in self._storage.list_incoming(request_id)]
            if not waiting:
                return None
            name, file_name = waiting[0].name, waiting[0].file_name
            photo_ids = [photo_id_from(each.sha256) for each in waiting]
            enrolled = settle(self._storage, request_id, name, photo_ids)
            if drop or enrolled:
                self._storage.delete_incoming(request_id)
            if enrolled:
                return Enrolment(id=request_id, name=name, photos=tuple(photo_ids))
        except NotFound:
            return None
        except StorageUnavailable as unavailable:
            logger.error("nothing is known of the photos of %s: %s", request_id, unavailable)
        logger.error("%s: given up: %s", request_id, error.detail)
        failure = PhotoFailure(file_name=file_name, code=error.code, detail=error.detail)
        return Enrolment(id=request_id, name=name, failures=(failure,))

    def _sentence(self, error: str) -> str:
        reasons = {
            "SoftTimeLimitExceeded": f"It took longer than {self._settings.task_soft_limit_s} s",
            "TimeLimitExceeded": f"It took longer than {self._settings.task_time_limit_s} s",
            "WorkerLostError": "The process that worked on it was killed",
            "TaskRevokedError": "An operator cancelled it",
        }
        if error == "TaskRevokedError":
            return f"{reasons[error]}: {ASIDE}"
        return f"{reasons.get(error, 'An error of ours ended it')}, and three tries are all it has: {ASIDE}"
