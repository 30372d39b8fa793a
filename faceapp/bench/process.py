"""Memory and open files of the processes that listen on a port of this machine, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LISTEN = "0A"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What all of the processes together hold; memory they share is counted in each."""

    rss_bytes: int
    files: int


def listeners(url: str) -> list[int]:
    """The ids of the processes that listen on the URL's port; none for another machine, or one without /proc."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return []
    sockets = {f"socket:[{inode}]" for inode in _listening(parts.port or 80)}
    return [int(each.name) for each in Path("/proc").glob("[0-9]*") if sockets & set(_open_files(each))]


def usage(pids: list[int]) -> Usage | None:
    """What the processes that still run hold; None when none does."""
    rss_bytes, files = 0, 0
    for pid in pids:
        with suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            rss_bytes += pages * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{pid}/fd"))
    return Usage(rss_bytes=rss_bytes, files=files) if rss_bytes else None


def _listening(port: int) -> list[str]:
    inodes = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                cells = line.split()
                if cells[3] == LISTEN and int(cells[1].rpartition(":")[2], 16) == port:
                    inodes.append(cells[9])
    return inodes


def _open_files(process: Path) -> list[str]:
    found = []
    with suppress(OSError):
        for each in (process / "fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(each))
    return found
