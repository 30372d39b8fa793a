"""A photo's header, looked at outside of the event loop, and not for longer than a limit.

`images.inspect` bounds what a header may cost. A form has many files, and many forms come at once: so other requests
get their turn after each file, and a file that is not sure to be cheap goes to a thread.
"""

from __future__ import annotations

from functools import cache

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

from faceapp import images
from faceapp.config import PhotoLimits
from faceapp.errors import FaceappError, ImageError
from faceapp.images import jpeg, png
from faceapp.schema import Photo

IN_PLACE_BYTES = 16 * 1024
IN_PLACE = jpeg.MAGIC, png.MAGIC
"""First bytes of formats of which a file up to IN_PLACE_BYTES is looked at in place: an ordinary one costs less than a
thread, and the worst that is known 3 ms."""
THREADS = 2
"""Each takes its turn with the event loop (sys.getswitchinterval): more would make that wait longer, and do no more."""
LIMIT_S = 10.0
"""With the wait for a thread. A photo of a camera takes a millisecond."""


def inspect(data: bytes, limits: PhotoLimits) -> Photo:
    """What `images.inspect` answers and raises; also ImageError after LIMIT_S. Other requests get their turn meanwhile.

    A thread cannot be stopped: one that is given up goes on to its end, and others wait for the rest of THREADS.
    """
    if not monkey.is_module_patched("threading"):
        return images.inspect(data, **limits)
    if len(data) <= IN_PLACE_BYTES and data.startswith(IN_PLACE):
        gevent.sleep(0)
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
