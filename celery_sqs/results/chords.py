"""Counting a chord's parts without a counter: an object each, and a list that S3 answers consistently.

chords/<group>/part-<index>-<task>   what a part came to
chords/<group>/more-<task>           a part that was added while the chord ran
chords/<group>/size-<n>              how many parts there were at the start
chords/<group>/claim                 the part that sends the callback: of two that see the last one, one wins
chords/<group>/done                  the callback has been sent
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_sqs.results.store import Store


@dataclass(frozen=True, kw_only=True)
class Complete:
    """All parts of a chord are there: what each came to, as it was stored, in the group's order."""

    parts: list[bytes]


class Chord:
    """One chord, by its group's id. Each method raises botocore's errors."""

    def __init__(self, store: Store, group_id: str) -> None:
        self._store, self._folder = store, f"chords/{group_id}/"

    def set_size(self, size: int) -> None:
        """There are `size` parts. Called before the last of them is sent."""
        self._store.put(f"{self._folder}size-{size}", b"")

    def add(self, task_id: str) -> None:
        """There is one part more, sent by a part that has not ended yet."""
        self._store.put(f"{self._folder}more-{task_id}", b"")

    def end_part(self, task_id: str, index: int | None, outcome: bytes) -> Complete | None:
        """Note what a part came to. For one part of all, the last one, this is the whole; None for the others.

        A part that was killed after it had won, and before `finish`, wins again when it is done again.
        """
        order = "z" if index is None else f"{index:010d}"
        self._store.put(f"{self._folder}part-{order}-{task_id}", outcome)
        names = list(self._store.names(self._folder))
        parts = [name for name in names if name.startswith("part-")]
        sizes = [int(name.removeprefix("size-")) for name in names if name.startswith("size-")]
        more = sum(name.startswith("more-") for name in names)
        if "done" in names or not sizes or len(parts) < sizes[0] + more or not self._claim(task_id):
            return None
        found = self._store.get_all(self._folder + name for name in parts)
        whole = [each for each in found if each is not None]
        # Parts that are gone were cleared away by the one that had won before this one saw `done`.
        return Complete(parts=whole) if len(whole) == len(parts) else None

    def _claim(self, task_id: str) -> bool:
        key = f"{self._folder}claim"
        return self._store.put_new(key, task_id.encode()) or self._store.get(key) == task_id.encode()

    def finish(self) -> None:
        """The callback, or its error, has been sent: a part that comes once more sends none."""
        self._store.put(f"{self._folder}done", b"")
        # The claim stays: a part that is about to write it has seen the others.
        names = [name for name in self._store.names(self._folder) if name not in ("claim", "done")]
        self._store.delete(*(self._folder + name for name in names))
