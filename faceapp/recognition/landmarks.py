"""dlib's five face points (shape_predictor_5_face_landmarks.dat, CC0) in numpy.

An ensemble of regression trees: Kazemi and Sullivan, "One millisecond face alignment with an ensemble of regression
trees" (2014). A shape starts as the mean face; every cascade compares pixels at places that move with it, and the
leaves that its trees reach add up to the next correction. As dlib/image_processing/shape_predictor.h does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceapp.errors import WeightsError
from faceapp.recognition.alignment import Points
from faceapp.recognition.dlib_format import DlibReader

_POINTS = 5


@dataclass(frozen=True)
class _Cascade:
    """Complete trees with `splits` inner nodes and `splits + 1` leaves, flattened tree after tree.

    A split compares the pixels `first` and `second`; pixel k is at point `anchors[k]` and from there `offsets[k]`, a
    complex number (x + iy) in units of the box, which turns with the face.
    """

    splits: int
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    threshold: NDArray[np.float32]
    leaves: NDArray[np.float32]
    anchors: NDArray[np.intp]
    offsets: NDArray[np.complex64]
    split_base: NDArray[np.intp]
    leaf_base: NDArray[np.intp]


class DlibLandmarks:
    """Places five points on a face. Raises WeightsError when `path` is not exactly as expected."""

    def __init__(self, path: Path) -> None:
        numbers = _Numbers(path)
        numbers.expect("the version", 1)
        mean = numbers.matrix()
        if len(mean) != 2 * _POINTS:
            numbers.fail(f"it places {len(mean) / 2:g} points, not {_POINTS}")
        self._mean: NDArray[np.complex64] = mean.view(np.complex64)
        count = numbers.length()
        forests = [numbers.forest() for _ in range(count)]
        numbers.expect("the number of cascades", count)
        anchors = [numbers.take(numbers.length()) for _ in range(count)]
        numbers.expect("the number of cascades", count)
        offsets = [numbers.vectors() for _ in range(count)]
        numbers.end()
        self._cascades = [_cascade(numbers, *parts) for parts in zip(forests, anchors, offsets, strict=True)]
        centred = self._mean - self._mean.mean()
        self._mean_direction = (centred / np.vdot(centred, centred)).astype(np.complex64)

    def __call__(self, image: Image.Image, box: tuple[int, int, int, int]) -> Points:
        """The five points, float64 [5, 2] in whole pixels, of the face in `box` (left, top, right, bottom; inclusive).

        What the box has over the border of the RGB image is black.
        """
        left, top, right, bottom = box
        view = _View(image, box)
        shape = self._mean
        for cascade in self._cascades:
            # the similarity from the mean shape to this one, least squares; in the complex plane a single factor
            turn = np.vdot(self._mean_direction, shape)
            places = cascade.offsets * turn + shape.take(cascade.anchors)
            shape = shape + _correction(cascade, view.brightness(places))
        points = shape.view(np.float32).reshape(-1, 2)
        size, corner = np.array([right - left, bottom - top]), np.array([left, top])
        placed: Points = np.floor(points.astype(np.float64) * size + corner + 0.5)
        return placed


class _View:
    """The brightness in and around a box of an image; black outside the image, and far from the box."""

    def __init__(self, image: Image.Image, box: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        x, y = left - width // 4, top - height // 4
        view = image.crop((x, y, right + width // 4, bottom + height // 4))  # black where there is no image
        self._columns, self._rows = view.size
        self._rgb = np.frombuffer(view.tobytes() + bytes(3), np.uint8).reshape(-1, 3)  # a black one behind all others
        self._size = np.float32(width), np.float32(height)
        self._corner = np.float32(left - x + 0.5), np.float32(top - y + 0.5)

    def brightness(self, places: NDArray[np.complex64]) -> NDArray[np.float32]:
        """float32 [places]; places are complex, x + iy in units of the box."""
        x = np.floor(places.real * self._size[0] + self._corner[0]).astype(np.intp)
        y = np.floor(places.imag * self._size[1] + self._corner[1]).astype(np.intp)
        inside = (x >= 0) & (y >= 0) & (x < self._columns) & (y < self._rows)
        rgb = self._rgb.take(np.where(inside, y * self._columns + x, -1), axis=0)
        grey: NDArray[np.float32] = (rgb.sum(1, dtype=np.int32) // 3).astype(np.float32)  # as dlib does it
        return grey


def _correction(cascade: _Cascade, brightness: NDArray[np.float32]) -> NDArray[np.complex64]:
    """What the cascade's trees add to the shape, complex64 [5]."""
    right = brightness.take(cascade.first) - brightness.take(cascade.second) <= cascade.threshold
    node = np.zeros(len(cascade.split_base), np.intp)
    for _ in range((cascade.splits + 1).bit_length() - 1):  # complete trees: every leaf is equally deep
        node = 2 * node + 1 + right.take(cascade.split_base + node)
    leaves = cascade.leaves.take(cascade.leaf_base + node, axis=0)
    correction: NDArray[np.complex64] = leaves.sum(0, dtype=np.float32).view(np.complex64)
    return correction


_Forest = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], int]


def _cascade(numbers: _Numbers, forest: _Forest, anchors: NDArray[np.int64], offsets: NDArray[np.float32]) -> _Cascade:
    """The parts of one cascade, once they are known to fit each other."""
    pixels, threshold, leaves, splits = forest
    if len(anchors) != len(offsets) or not 0 <= pixels.min() <= pixels.max() < len(anchors):
        numbers.fail("a split compares pixels that there are not")
    if not 0 <= anchors.min() <= anchors.max() < _POINTS:
        numbers.fail("a pixel hangs on a point that there is not")
    trees = np.arange(len(leaves) // (splits + 1))
    return _Cascade(
        splits=splits,
        first=pixels[:, 0].astype(np.intp),
        second=pixels[:, 1].astype(np.intp),
        threshold=threshold,
        leaves=leaves,
        anchors=anchors.astype(np.intp),
        offsets=offsets.view(np.complex64).ravel(),
        split_base=trees * splits,
        leaf_base=trees * (splits + 1) - splits,
    )


class _Numbers:
    """The file as one array of integers, taken from the front."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = DlibReader(path).all_integers()
        self._at = 0

    def fail(self, why: str) -> NoReturn:
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

    def forest(self) -> _Forest:
        """The splits' pixels [all splits, 2] and thresholds, the leaves [all leaves, 10], and the splits of a tree."""
        splits, leaves = [], []
        for _ in range(self.length()):
            inner = self.length()
            splits.append(self.take(4 * inner).reshape(inner, 4))
            outer = self.length()
            leaves.append(self.take(outer * (2 + 4 * _POINTS)).reshape(outer, -1)[:, 2:])
            if inner != len(splits[0]) or outer != inner + 1 or outer & inner:
                self.fail("a tree is not complete, or not like the others")
        split, leaf = np.concatenate(splits), np.concatenate(leaves)
        return split[:, :2], self.reals(split[:, 2:]), self.reals(leaf.reshape(len(leaf), -1, 2)), len(splits[0])

    def end(self) -> None:
        if self._at != len(self._values):
            self.fail(f"{len(self._values) - self._at} numbers too many")
