"""dlib's five face points (shape_predictor_5_face_landmarks.dat, CC0) in numpy.

An ensemble of regression trees: Kazemi and Sullivan, "One millisecond face alignment with an ensemble of regression
trees" (2014). A shape starts as the mean face; every cascade compares pixels at places that move with it, and the
leaves that its trees reach add up to the next correction. As dlib/image_processing/shape_predictor.h does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceapp.errors import WeightsError
from faceapp.recognition.alignment import Points, similarity
from faceapp.recognition.dlib_format import DlibReader

_POINTS = 5


@dataclass(frozen=True)
class _Cascade:
    """`trees` complete trees of `splits` inner nodes and `splits + 1` leaves, flattened tree after tree."""

    trees: int
    splits: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    threshold: NDArray[np.float32]
    leaves: NDArray[np.float32]
    anchors: NDArray[np.int64]
    offsets: NDArray[np.float32]


class DlibLandmarks:
    """Places five points on a face. Raises WeightsError when `path` is not exactly as expected."""

    def __init__(self, path: Path) -> None:
        numbers = _Numbers(path)
        numbers.expect("the version", 1)
        self._mean = numbers.matrix().reshape(-1, 2)
        if len(self._mean) != _POINTS:
            numbers.fail(f"it places {len(self._mean)} points, not {_POINTS}")
        count = numbers.length()
        forests = [numbers.forest() for _ in range(count)]
        numbers.expect("the number of cascades", count)
        anchors = [numbers.take(numbers.length()) for _ in range(count)]
        numbers.expect("the number of cascades", count)
        offsets = [numbers.vectors() for _ in range(count)]
        numbers.end()
        self._cascades = [
            _Cascade(*forest, anchor, offset) for forest, anchor, offset in zip(forests, anchors, offsets, strict=True)
        ]

    def __call__(self, rgb: NDArray[np.uint8], box: tuple[int, int, int, int]) -> Points:
        """The five points, float64 [5, 2] in whole pixels, of the face in `box` (left, top, right, bottom; inclusive).

        `rgb` is uint8 [H, W, 3]; what the box has over the border is black.
        """
        left, top, right, bottom = box
        size = np.array([right - left, bottom - top], np.float32)
        corner = np.array([left, top], np.float32)
        shape = self._mean
        for cascade in self._cascades:
            shape = shape + _correction(cascade, self._grey(cascade, rgb, shape, size, corner))
        points: Points = np.floor(shape * size + corner + np.float32(0.5)).astype(np.float64)
        return points

    def _grey(
        self,
        cascade: _Cascade,
        rgb: NDArray[np.uint8],
        shape: NDArray[np.float32],
        size: NDArray[np.float32],
        corner: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """The brightness at the cascade's places on this shape, float32 [places]."""
        matrix = similarity(self._mean.astype(np.float64), shape.astype(np.float64))[0].astype(np.float32)
        places = (cascade.offsets @ matrix.T + shape[cascade.anchors]).astype(np.float64) * size + corner + 0.5
        pixels = np.floor(places).astype(np.int64)
        x, y = pixels[:, 0], pixels[:, 1]
        height, width = rgb.shape[:2]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        colours = rgb[np.where(inside, y, 0), np.where(inside, x, 0)].astype(np.int32)
        return np.where(inside, (colours[:, 0] + colours[:, 1] + colours[:, 2]) // 3, 0).astype(np.float32)


def _correction(cascade: _Cascade, grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the cascade's trees add to the shape, float32 [5, 2]."""
    trees = np.arange(cascade.trees)
    node = np.zeros(cascade.trees, np.int64)
    for _ in range((cascade.splits + 1).bit_length() - 1):  # complete trees: every leaf is equally deep
        split = trees * cascade.splits + node
        right = grey[cascade.first[split]] - grey[cascade.second[split]] <= cascade.threshold[split]
        node = 2 * node + 1 + right
    leaves = cascade.leaves[trees * (cascade.splits + 1) + node - cascade.splits]
    correction: NDArray[np.float32] = leaves.sum(0, dtype=np.float32).reshape(-1, 2)
    return correction


class _Numbers:
    """The file as one array of integers, taken from the front."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = DlibReader(path).all_integers()
        self._at = 0

    def fail(self, why: str) -> None:
        raise WeightsError(f"{self._path} is damaged near number {self._at}: {why}")

    def take(self, count: int) -> NDArray[np.int64]:
        found = self._values[self._at : self._at + count]
        if len(found) != count:
            self.fail("the file ends too early")
        self._at += count
        return found

    def one(self) -> int:
        return int(self.take(1)[0])

    def length(self) -> int:
        found = self.one()
        if not 0 < found <= len(self._values):
            self.fail(f"a length is {found}")
        return found

    def expect(self, what: str, wanted: int) -> None:
        if (found := self.one()) != wanted:
            self.fail(f"{what} is {found}, not {wanted}")

    def reals(self, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
        """[..., 2] mantissas and exponents -> float32 [...], finite."""
        with np.errstate(over="ignore"):
            found = np.ldexp(pairs[..., 0].astype(np.float64), pairs[..., 1].astype(np.int32)).astype(np.float32)
        if not np.isfinite(found).all():
            self.fail("a number is not finite")
        return found

    def matrix(self) -> NDArray[np.float32]:
        """dlib writes a matrix's lengths negative."""
        rows, columns = -self.one(), -self.one()
        if rows < 1 or columns < 1 or rows * columns > len(self._values):
            self.fail(f"a matrix is {rows} x {columns}")
        return self.reals(self.take(2 * rows * columns).reshape(rows * columns, 2))

    def vectors(self) -> NDArray[np.float32]:
        count = self.length()
        return self.reals(self.take(4 * count).reshape(count, 2, 2))

    def forest(
        self,
    ) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """The first six fields of a _Cascade."""
        trees = self.length()
        splits, leaves = [], []
        for _ in range(trees):
            inner = self.length()
            splits.append(self.take(4 * inner).reshape(inner, 4))
            outer = self.length()
            leaves.append(self.take(outer * (2 + 4 * _POINTS)).reshape(outer, -1)[:, 2:])
            if inner != len(splits[0]) or outer != inner + 1:
                self.fail("the trees are not alike")
        split, leaf = np.concatenate(splits), np.concatenate(leaves)
        values = self.reals(leaf.reshape(len(leaf), -1, 2))
        return trees, len(splits[0]), split[:, 0], split[:, 1], self.reals(split[:, 2:]), values

    def end(self) -> None:
        if self._at != len(self._values):
            self.fail(f"{len(self._values) - self._at} numbers too many")
