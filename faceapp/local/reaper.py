"""Stops what a killed supervisor has left (`python -m faceapp.local.reaper GRACE_S`, started by it).

Standard input says `+<process group>` and `-<process group>`, one a line. Its end is the supervisor's end: whatever
groups are left then are stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from faceapp.local.processes import kill_after_grace


def main() -> None:
    """Read until the end of standard input, then stop the groups that were not taken back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGTERM)
    kill_after_grace(groups, running=lambda: any(exists(group) for group in groups), grace_s=float(sys.argv[1]))


def exists(group: int) -> bool:
    """Whether the process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
