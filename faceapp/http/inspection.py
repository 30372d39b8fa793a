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
from faceapp.errors import ImageError
from faceapp.schema import Photo

IN_PLACE_BYTES = 16 * 1024
"""A smaller file is looked at in place: at worst that takes milliseconds."""
THREADS = 2
"""Each takes its turn with the event loop (sys.getswitchinterval): more would make that wait longer, and do no more."""
LIMIT_S = 5.0
"""With the wait for a thread. A photo of a camera takes a millisecond."""


def inspect(data: bytes, limits: PhotoLimits) -> Photo:
    """What `images.inspect` answers and raises; also ImageError after LIMIT_S.

    A thread cannot be stopped: one that is given up goes on to its end, and others wait for the rest of THREADS.
    """
    if len(data) <= IN_PLACE_BYTES or not monkey.is_module_patched("threading"):
        return images.inspect(data, **limits)
    with gevent.Timeout(LIMIT_S, ImageError("The photo's header takes too long to be read.")):
        photo: Photo = _threads().apply(images.inspect, (data,), limits)
        return photo


@cache
def _threads() -> ThreadPool:
    """This process's threads, made at the first use: after the fork."""
    return ThreadPool(THREADS)
