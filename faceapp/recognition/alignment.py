"""From five points on a face to a square chip, the way dlib cuts it.

Points are (x, y) in pixels. dlib's five are the outer and inner corner of one eye, the same of the other eye, and the
base of the nose; their mean places in the unit square are those of dlib/image_transforms/interpolation.h
(`get_face_chip_details`), where a chip pads the square by a quarter on every side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Points = NDArray[np.float64]

PADDING = 0.25
MEAN_FACE = np.array(
    [
        [0.8595674595992, 0.2134981538014],
        [0.6460604764104, 0.2289674387677],
        [0.1205750620789, 0.2137274526848],
        [0.3340850613712, 0.2290642403242],
        [0.4901123135679, 0.6277975316475],
    ]
)
"""dlib's mean face: where its five points lie, in units of the unpadded square."""


def chip_points(side_px: int) -> Points:
    """Where a chip of `side_px` shows the mean face's five points, [5, 2]."""
    return (PADDING + MEAN_FACE) / (2 * PADDING + 1) * side_px


def similarity(source: Points, target: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The turn, scale and shift that fit best: `target ~ matrix @ source + shift`, least squares.

    Umeyama, "Least-squares estimation of transformation parameters" (1991), in two dimensions and without mirroring,
    as dlib's `find_similarity_transform`.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    spread = max(float((a * a).sum()), 1e-12)
    cosine = float((a * b).sum()) / spread
    sine = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    return matrix, target_mean - matrix @ source_mean


def cut_chip(image: Image.Image, points: Points, side_px: int) -> NDArray[np.uint8]:
    """The face as an upright RGB square, uint8 [side_px, side_px, 3]; black where it reaches over the border.

    `points` are dlib's five in `image`. The picture is first reduced by a power of two that leaves at least one of its
    pixels per chip pixel, so that nothing aliases, then sampled bilinearly.
    """
    matrix, origin = similarity(chip_points(side_px), points)
    matrix, origin = _pixel_to_pixel(matrix, origin, side_px)
    factor = 1
    while scale_of(matrix) > 2 * factor:
        factor *= 2
    if factor > 1:
        corners = np.array([[0, 0], [side_px, 0], [0, side_px], [side_px, side_px]]) @ matrix.T + origin
        low = np.clip(np.floor(corners.min(0)).astype(int) - factor, 0, np.array(image.size) - 1)
        high = np.clip(np.ceil(corners.max(0)).astype(int) + factor + 1, low + 1, image.size)
        image = image.reduce(factor, (int(low[0]), int(low[1]), int(high[0]), int(high[1])))
        matrix, origin = matrix / factor, (origin - low + 0.5) / factor - 0.5
    # Pillow counts from the pixels' corners, everybody else here from their centres
    origin = origin + 0.5 - matrix @ np.array([0.5, 0.5])
    coefficients = (matrix[0, 0], matrix[0, 1], origin[0], matrix[1, 0], matrix[1, 1], origin[1])
    chip = image.transform((side_px, side_px), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(chip)


def scale_of(matrix: NDArray[np.float64]) -> float:
    """Picture pixels per chip pixel."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def _pixel_to_pixel(
    matrix: NDArray[np.float64], origin: NDArray[np.float64], side_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """dlib's chip covers the outlines of its corner pixels but samples corner to corner, a little tighter."""
    scale = scale_of(matrix)
    turn = matrix / scale
    centre = matrix @ np.array([side_px / 2, side_px / 2]) + origin
    half = (side_px * scale - 1) / 2
    return turn * (2 * half / (side_px - 1)), centre - turn @ np.array([half, half])
