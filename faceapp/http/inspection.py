"""A photo's header, looked at outside of the event loop, and not for longer than a limit.

`images.inspect` bounds what a header may cost. A large file goes to a thread all the same, so that whatever is found to
cost more one day holds up its own request and nobody else's.
"""

from __future__ import annotations

from functools import cache

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

from faceapp import images
from faceapp.config import PhotoLimits
from faceapp.errors import FaceappError, ImageError
from faceapp.schema import Photo

IN_PLACE_BYTES = 64 * 1024
"""A smaller file is looked at in place: the worst that is known takes 60 ms, an ordinary one less than a thread."""
THREADS = 2
"""Each takes its turn with the event loop (sys.getswitchinterval): more would make that wait longer, and do no more."""
LIMIT_S = 10.0
"""With the wait for a thread. A photo of a camera takes a millisecond."""


def inspect(data: bytes, limits: PhotoLimits) -> Photo:
    """What `images.inspect` answers and raises; also ImageError after LIMIT_S.

    A thread cannot be stopped: one that is given up goes on to its end, and others wait for the rest of THREADS.
    """
    if len(data) <= IN_PLACE_BYTES or not monkey.is_module_patched("threading"):
        return images.inspect(data, **limits)
    with gevent.Timeout(LIMIT_S, ImageError("The photo's header takes too long to be read.")):
        outcome: Photo | FaceappError = _threads().apply(_inspect, (data, limits))
    if isinstance(outcome, FaceappError):
        raise outcome
    return outcome


def _inspect(data: bytes, limits: PhotoLimits) -> Photo | FaceappError:
    """An error as a value: of one that is raised in a thread, gevent would write the traceback to the log."""
    try:
        return images.inspect(data, **limits)
    except FaceappError as error:
        # The traceback's frames hold the photo.
        return error.with_traceback(None)


@cache
def _threads() -> ThreadPool:
    """This process's threads, made at the first use: after the fork."""
    return ThreadPool(THREADS)
