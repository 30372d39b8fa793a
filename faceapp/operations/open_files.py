"""How many files and connections a process may have open at once."""

from __future__ import annotations

import resource


def allow(count: int) -> int:
    """How many files this process may have open: `count` if the system lets it, and never fewer than before.

    Many systems begin with 1,024, which is less than the requests that a process may hold open.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < count:
        allowed = count if most == resource.RLIM_INFINITY else min(count, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return allowed
