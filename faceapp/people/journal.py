"""The `version` object: that the gallery changed, and if it can be told, whose photos did.

A worker asks for its ETag before searches. When that is another, the latest enrolments in it say which people to list
again; listing a gallery of 100,000 photos takes 100 calls. Forgetting begins a new journal, which sends every worker to
the whole listing: so the forgotten name is not kept here either.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from faceapp.storage import Storage

VERSION = "version"
LENGTH = 100
ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What the `version` object said. `entries` are (id, name), oldest first; a new journal begins without a name."""

    etag: str | None
    entries: Sequence[tuple[str, str]]

    @property
    def last(self) -> str | None:
        return self.entries[-1][0] if self.entries else None

    def names_since(self, entry: str | None) -> set[str] | None:
        """Who was enrolled after `entry`; None if that is not in the journal, and anything may have changed."""
        ids = [each for each, _ in self.entries]
        if entry not in ids:
            return None
        return {name for _, name in self.entries[ids.index(entry) + 1 :]}


def read_journal(storage: Storage) -> Journal:
    """The journal; one without entries where there is none, or none that can be read."""
    found = storage.get_gallery(VERSION)
    if found is None:
        return Journal(etag=None, entries=())
    try:
        entries = [(str(entry), str(name)) for entry, name in json.loads(found.data)]
    except (ValueError, TypeError):
        entries = []
    return Journal(etag=found.etag, entries=entries)


def note_enrolment(storage: Storage, name: str) -> None:
    """Tell the workers that `name` has a new photo.

    Of two writers at the same moment one sees the other's entry and adds to it; where that does not succeed soon, the
    workers are told to look at everything.
    """
    for _ in range(ATTEMPTS):
        journal = read_journal(storage)
        entries = [*journal.entries, _entry(name)] if journal.entries else [_entry(""), _entry(name)]
        if storage.replace_gallery(VERSION, json.dumps(entries[-LENGTH:]).encode(), etag=journal.etag):
            return
    note_change(storage)


def note_change(storage: Storage) -> None:
    """Tell the workers that anything may have changed."""
    storage.put_gallery(VERSION, json.dumps([_entry("")]).encode())


def _entry(name: str) -> tuple[str, str]:
    return uuid.uuid4().hex, name
