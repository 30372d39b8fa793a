"""Counting a chord's parts without a counter: an object each, and lists that S3 answers consistently.

chords/<group>/part-<index>-<task>   what a part came to, at its first delivery that got so far
chords/<group>/more-<task>           a part that was added while the chord ran
chords/<group>/size-<n>              how many parts there were at the start
chords/<group>/claim                 the part that sends the callback: of two that see the last one, one wins
chords/<group>/done                  the callback has been sent

Each part lists all parts after it has written its own, so the one whose object is written last sees the others: no
callback is lost. It does not while an index of its own block (`BLOCK`) lacks: the part with that index will look. This
holds where the parts have the indexes 0 to n-1, once each; the message says n then (`INDEXED`), and any other part (of
nested groups, added, without an index) looks at all. No callback is doubled: the claim is a conditional write.

A part that was killed and is delivered again does all of it again: what is written stays, and the claim is its own.
Killed after the callback was sent and before `done` it sends it once more, unless the callback has a state by then. A
killed part that is not delivered again leaves its chord waiting. Clocks play no part.

Versions before have the same objects, and look at all parts each time: workers of both may share a chord of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from celery_sqs.results.store import Store

BLOCK_DIGITS = 2
BLOCK = 10**BLOCK_DIGITS
"""Parts whose names begin alike, and are listed together: about the square root of a large chord's size."""
INDEXED = "chord_size"
"""In a chord's signature: how many parts there are, with the indexes from 0 on. Celery had the key for the same."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """All parts of a chord are there: what each came to, as it was stored, in the group's order."""

    parts: list[bytes]
    again: bool
    """Whether this part had won before: it may have sent the callback, and was killed."""


def indexed_size(signature: Any) -> int | None:
    """What a chord's signature in a message says about its parts; None where it says nothing."""
    size = signature.get(INDEXED) if isinstance(signature, dict) else None
    return size if isinstance(size, int) else None


class Chord:
    """One chord, by its group's id. Each method raises ResultsUnavailable."""

    def __init__(self, store: Store, group_id: str) -> None:
        self._store, self._folder = store, f"chords/{group_id}/"

    def set_size(self, size: int) -> None:
        """There are `size` parts. Called before the last of them is sent."""
        self._store.put(f"{self._folder}size-{size}", b"")

    def add(self, task_id: str) -> None:
        """There is one part more, sent by a part that has not ended yet."""
        self._store.put(f"{self._folder}more-{task_id}", b"")

    def end_part(
        self, task_id: str, index: int | None, outcome: bytes, *, indexed: int | None = None
    ) -> Complete | None:
        """Note what a part came to, unless that is known. For one part of all, the last one, this is the whole.

        `indexed` is what `indexed_size` says of its message.
        """
        self._store.put_new(self._part(task_id, index), outcome)
        if index is not None and indexed is not None and self._lacks(index, indexed):
            return None
        return self._whole(task_id)

    def outcome(self, task_id: str, index: int | None) -> bytes | None:
        """What a part came to, as far as that is noted, and the chord is not finished."""
        return self._store.get(self._part(task_id, index))

    def _part(self, task_id: str, index: int | None) -> str:
        return f"{self._folder}part-{'z' if index is None else f'{index:010d}'}-{task_id}"

    def _lacks(self, index: int, size: int) -> bool:
        """Whether another part of the same block is still to come; False where one list has all parts anyway."""
        if size <= BLOCK:
            return False
        first = index - index % BLOCK
        block = f"part-{f'{index:010d}'[:-BLOCK_DIGITS]}"
        orders = ((block + name).split("-")[1] for name in self._store.names(self._folder + block))
        return not {int(order) for order in orders}.issuperset(range(first, min(first + BLOCK, size)))

    def _whole(self, task_id: str) -> Complete | None:
        names = list(self._store.names(self._folder))
        parts = [name for name in names if name.startswith("part-")]
        sizes = [int(name.removeprefix("size-")) for name in names if name.startswith("size-")]
        more = sum(name.startswith("more-") for name in names)
        if "done" in names or not sizes or len(parts) < sizes[0] + more:
            return None
        # A list is not of one moment: it may have a part and lack what that one had added before it ended.
        if len(parts) < sizes[0] + sum(1 for _ in self._store.names(f"{self._folder}more-")):
            return None
        if not (claimed := self.claim(task_id)):
            return None
        found = self._store.get_all(self._folder + name for name in parts)
        whole = [each for each in found if each is not None]
        # Parts that are gone were cleared away by the one that had won before this one saw `done`.
        return Complete(parts=whole, again=claimed == "again") if len(whole) == len(parts) else None

    def claim(self, task_id: str) -> Literal["", "first", "again"]:
        """Whether this part, and no other, is the one that sends the callback; whether it was before, too."""
        key = f"{self._folder}claim"
        if self._store.put_new(key, task_id.encode()):
            return "first"
        return "again" if self._store.get(key) == task_id.encode() else ""

    def finish(self) -> None:
        """The callback, or its error, has been sent: a part that comes once more sends none."""
        self._store.put(f"{self._folder}done", b"")
        # The claim stays: a part that is about to write it has seen the others.
        names = [name for name in self._store.names(self._folder) if name not in ("claim", "done")]
        self._store.delete(*(self._folder + name for name in names))
