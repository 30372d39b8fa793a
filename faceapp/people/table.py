"""All enrolled vectors in memory, and the exact search for the nearest."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faceapp.people.people import PHOTO_ID_DIGITS, VECTORS, name_of, path_of
from faceapp.schema import UNKNOWN, Candidate


@dataclass(frozen=True, kw_only=True)
class Match:
    """Who a face is: `unknown`, or the nearest person when they are near enough."""

    name: str
    distance: float | None
    """To the nearest enrolled photo of anybody; None when nobody is enrolled."""
    candidates: tuple[Candidate, ...]
    """The nearest people, nearest first, however far they are."""


class Listed(NamedTuple):
    """A vector object as the bucket's listing has it."""

    etag: str
    since_s: float
    """When it was enrolled: seconds since 1970, by S3's clock."""


class Table:
    """Enrolled photos, ordered by key and therefore grouped by person. Never changes once made: threads may share it.

    `rows` is float32 [2, N, D]: the N photos as seen, and at low resolution; `keys` are those of vector objects, and
    `since_s` is when each was enrolled (all at once, where it is not given).
    """

    def __init__(
        self,
        keys: Sequence[str],
        etags: Sequence[str],
        rows: NDArray[np.float32],
        since_s: NDArray[np.float64] | None = None,
    ) -> None:
        self.keys, self.etags, self.rows = keys, etags, rows
        self.since_s = np.zeros(len(keys)) if since_s is None else since_s
        people = [key.rpartition("/")[0] for key in keys]
        starts = [i for i, person in enumerate(people) if i == 0 or person != people[i - 1]]
        self.names = [name_of(people[i]) for i in starts]
        self._starts = np.array(starts, dtype=np.intp)
        self._ends = np.append(self._starts[1:], len(keys))
        self._half_squares = np.einsum("rnd,rnd->rn", rows, rows) / 2
        self._longest = np.sqrt(2 * self._half_squares.max(axis=1, initial=0.0))
        lines = "".join(f"{key} {etag}\n" for key, etag in zip(keys, etags, strict=True))
        self.version = f"{len(keys)}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"

    @classmethod
    def empty(cls, dimension: int) -> Table:
        return cls((), (), np.zeros((2, 0, dimension), dtype=np.float32))

    @classmethod
    def of(cls, people: Iterable[tuple[str, NDArray[np.float32], NDArray[np.float32]]], *, dimension: int) -> Table:
        """A table that is in no bucket: names with two descriptors ([D]), of the face as seen and at low resolution."""
        ordered = sorted(
            (VECTORS + path_of(name, f"{number:0{PHOTO_ID_DIGITS}x}"), seen, low)
            for number, (name, seen, low) in enumerate(people)
        )
        rows = np.array([(seen, low) for _, seen, low in ordered], dtype=np.float32)
        keys = [key for key, _, _ in ordered]
        return cls(keys, [""] * len(keys), rows.reshape(-1, 2, dimension).transpose(1, 0, 2))

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        place = bisect.bisect_left(self.keys, key)
        return place < len(self.keys) and self.keys[place] == key

    def seen_of(self, name: str) -> NDArray[np.float32]:
        """The person's descriptors ([N, D]) of the face as seen; none of somebody who is not enrolled."""
        first = VECTORS + path_of(name, "")
        start = bisect.bisect_left(self.keys, first)
        end = bisect.bisect_left(self.keys, first + "g")  # after every hexadecimal digit
        return self.rows[0, start:end]

    @property
    def size_bytes(self) -> int:
        """Of the numbers, which is nearly all of it."""
        return int(self.rows.nbytes + self._half_squares.nbytes)

    def updated(self, listing: Mapping[str, Listed], fetched: Mapping[str, tuple[str, NDArray[np.float32]]]) -> Table:
        """The table after a change: of the keys in `listing`, those in `fetched` (to an ETag and rows [2, D]), and
        those held already with the listed ETag."""
        kept = {
            key: i
            for i, (key, etag) in enumerate(zip(self.keys, self.etags, strict=True))
            if key not in fetched and key in listing and listing[key].etag == etag
        }
        if not fetched and len(kept) == len(self):
            return self
        keys = sorted(kept.keys() | fetched.keys())
        rows = np.empty((2, len(keys), self.rows.shape[2]), dtype=np.float32)
        old = np.array([kept.get(key, -1) for key in keys], dtype=np.intp)
        rows[:, old >= 0] = self.rows[:, old[old >= 0]]
        etags = []
        for i, key in enumerate(keys):
            if key in fetched:
                etag, rows[:, i] = fetched[key]
                etags.append(etag)
            else:
                etags.append(self.etags[old[i]])
        return Table(keys, etags, rows, np.array([listing[key].since_s for key in keys]))

    def search(
        self, probes: NDArray[np.float32], *, low_resolution: bool, threshold: float, candidates: int
    ) -> list[Match]:
        """One match for each of `probes` (float32 [F, D]), by Euclidean distance; `threshold` itself is near enough.

        Of people at the same distance, whose photo was enrolled first comes first: to enrol somebody's photo under
        another name takes no answer away from them.

        One product in float32 finds who could be among the nearest, within its rounding error; these alone are
        measured again in float64, so the answer is the exact one.
        """
        if not len(self):
            return [Match(name=UNKNOWN, distance=None, candidates=())] * len(probes)
        kind = int(low_resolution)
        # Half of |row - probe|² less the probe's own |probe|²/2, which is the same for every row.
        scores = probes @ self.rows[kind].T
        np.subtract(self._half_squares[kind], scores, out=scores)
        nearest = np.minimum.reduceat(scores, self._starts, axis=1)
        return [
            self._match(probe, kind, scores[i], nearest[i], threshold=threshold, candidates=candidates)
            for i, probe in enumerate(probes)
        ]

    def _match(
        self,
        probe: NDArray[np.float32],
        kind: int,
        scores: NDArray[np.float32],
        nearest: NDArray[np.float32],
        *,
        threshold: float,
        candidates: int,
    ) -> Match:
        wanted = min(max(1, candidates), len(nearest))
        # Twice the worst rounding error of a float32 sum of D + 2 terms (Higham, Accuracy and Stability, 3.5).
        slack = 2 * (len(probe) + 2) * 2.0**-23 * self._longest[kind] * (np.linalg.norm(probe) + self._longest[kind])
        limit = np.partition(nearest, wanted - 1)[wanted - 1] + slack
        measured = []
        for person in np.flatnonzero(nearest <= limit):
            start, end = self._starts[person], self._ends[person]
            near = start + np.flatnonzero(scores[start:end] <= nearest[person] + slack)
            away = self.rows[kind, near].astype(np.float64) - probe
            distances = np.sqrt(np.einsum("nd,nd->n", away, away))
            since_s = self.since_s[near[distances == distances.min()]].min()
            measured.append((float(distances.min()), since_s, self.names[person]))
        measured.sort()
        distance, _, name = measured[0]
        return Match(
            name=name if distance <= threshold else UNKNOWN,
            distance=distance,
            candidates=tuple(
                Candidate(name=name, distance=away) for away, _, name in measured[: min(wanted, candidates)]
            ),
        )
