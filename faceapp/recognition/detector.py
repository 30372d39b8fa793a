"""Where the faces are: MTCNN (Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional
networks", 2016) with the weights that the facenet-pytorch wheel carries (MIT).

Three small networks, each more careful than the one before: PNet slides over a pyramid of the picture, RNet and ONet
judge and correct the crops that are left. The constants are those of the paper's and facenet-pytorch's detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from faceapp.recognition.mtcnn import onet, pnet, rnet
from faceapp.recognition.runtime import Network
from faceapp.recognition.vision import nms, numpy_nms

Array = NDArray[np.float64]

_CELL_PX = 12
"""PNet's field of view; its stride is 2."""
_PYRAMID_STEP = 0.709
_THRESHOLDS = (0.6, 0.7, 0.7)
_BOX = Image.Resampling.BOX


@dataclass(frozen=True)
class Detection:
    """One face in a picture: box [4] (left, top, right, bottom), five landmarks [5, 2] as schema.Face has them."""

    box: Array
    landmarks: Array
    score: float

    @property
    def side_px(self) -> float:
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    def scaled(self, factor: float) -> Detection:
        return Detection(self.box * factor, self.landmarks * factor, self.score)


@dataclass(frozen=True)
class Pass:
    """How closely to look: the picture is brought down to `side_px`, faces from `min_face_px` in it are found."""

    side_px: int
    min_face_px: int


QUICK = Pass(side_px=320, min_face_px=40)
CLOSE = Pass(side_px=640, min_face_px=24)
_SMALL_FACE = 0.2
"""A largest face below this part of the shorter side lets one expect smaller ones beside it."""


class Detector:
    """Finds faces. Raises WeightsError when its weights are not there."""

    def __init__(self, *, device: torch.device) -> None:
        self._pnet = Network(pnet(), side_px=32, device=device)
        self._rnet = Network(rnet(), side_px=24, device=device)
        self._onet = Network(onet(), side_px=48, device=device)

    def __call__(self, image: Image.Image) -> list[Detection]:
        """The faces in an RGB picture, largest first.

        A quick look serves a portrait. A closer look, several times as dear, follows when that finds nobody or only
        small faces, as in a group photo.
        """
        found = self.look(image, QUICK)
        if max((face.side_px for face in found), default=0) < _SMALL_FACE * min(image.size):
            found = self.look(image, CLOSE) or found
        return sorted(found, key=lambda face: -face.side_px)

    def look(self, image: Image.Image, how: Pass) -> list[Detection]:
        """The faces in one pass over the picture, in no order."""
        factor = max(image.size) / how.side_px
        if factor > 1:
            size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
            image = image.resize(size, _BOX, reducing_gap=2.0)
        boxes = self._propose(image, how.min_face_px)
        boxes = self._refine(image, boxes)
        return [face.scaled(max(1.0, factor)) for face in self._decide(image, boxes)]

    def _propose(self, image: Image.Image, min_face_px: int) -> Array:
        """PNet over the pyramid: square boxes [N, 4]."""
        levels = _pyramid(image, min_face_px)
        if not levels:
            return np.zeros((0, 4))
        outputs = self._slide([level for level, _ in levels])
        cells = np.concatenate([_cells(output, scale) for output, (_, scale) in zip(outputs, levels, strict=True)])
        cells = cells[nms(cells[:, :4], cells[:, 4], 0.7)]
        size = np.tile(cells[:, 2:4] - cells[:, :2], 2)
        return _squared(cells[:, :4] + cells[:, 5:9] * size)

    def _slide(self, levels: list[Image.Image]) -> list[NDArray[np.float32]]:
        """PNet's output for every level, [6, rows, columns], in one call: the levels lie on shelves of one canvas."""
        width = levels[0].width + levels[0].width % 2
        places, x, y, shelf = [], 0, 0, 0
        for level in levels:  # at even places, so that PNet's stride of 2 meets every level where it begins
            if x + level.width > width:
                x, y, shelf = 0, y + shelf, 0
            places.append((x, y))
            x += level.width + level.width % 2
            shelf = max(shelf, level.height + level.height % 2)
        canvas = Image.new("RGB", (width, y + shelf))
        for place, level in zip(places, levels, strict=True):
            canvas.paste(level, place)
        output = self._pnet(np.array(canvas)[None])[0]
        return [
            output[:, y // 2 : y // 2 + _steps(level.height), x // 2 : x // 2 + _steps(level.width)]
            for (x, y), level in zip(places, levels, strict=True)
        ]

    def _refine(self, image: Image.Image, boxes: Array) -> Array:
        """RNet: fewer and better square boxes [N, 4]."""
        crops, boxes = _crops(image, boxes, 24)
        if not len(boxes):
            return boxes
        output = self._rnet(crops)
        score = _probability(output)
        sure = score > _THRESHOLDS[1]
        boxes, output, score = boxes[sure], output[sure], score[sure]
        kept = nms(boxes, score, 0.7)
        boxes, output = boxes[kept], output[kept]
        return _squared(boxes + output[:, 2:6] * np.tile(_lengths(boxes), 2))

    def _decide(self, image: Image.Image, boxes: Array) -> list[Detection]:
        """ONet: the faces, with their landmarks."""
        crops, boxes = _crops(image, boxes, 48)
        if not len(boxes):
            return []
        output = self._onet(crops)
        score = _probability(output)
        sure = score > _THRESHOLDS[2]
        boxes, output, score = boxes[sure], output[sure].astype(np.float64), score[sure]
        size = _lengths(boxes)
        relative = np.stack([output[:, 6:11], output[:, 11:16]], 2)
        landmarks = boxes[:, None, :2] + relative * size[:, None] - 1
        boxes = boxes + output[:, 2:6] * np.tile(size, 2)
        kept = numpy_nms(boxes, score, 0.7, of_smaller=True)
        return [Detection(boxes[index], landmarks[index], float(score[index])) for index in kept]


def _pyramid(image: Image.Image, min_face_px: int) -> list[tuple[Image.Image, float]]:
    """Smaller and smaller pictures, and their scales; a face of `min_face_px` fills PNet's view in the first."""
    scale = _CELL_PX / min_face_px
    levels = []
    while min(image.size) * scale >= _CELL_PX:
        size = (int(image.width * scale + 1), int(image.height * scale + 1))
        levels.append((image.resize(size, _BOX), scale))
        scale *= _PYRAMID_STEP
    return levels


def _steps(length_px: int) -> int:
    """How many places PNet looks at along a side."""
    return (length_px - _CELL_PX + 1) // 2 + 1


def _cells(output: NDArray[np.float32], scale: float) -> Array:
    """PNet's faces in one level: box in the picture, score, correction, [N, 9]."""
    difference = (output[1] - output[0]).astype(np.float64)
    rows, columns = np.nonzero(difference >= np.log(_THRESHOLDS[0] / (1 - _THRESHOLDS[0])))
    score = 1 / (1 + np.exp(-difference[rows, columns]))
    corner = np.stack([columns, rows], 1)
    box = np.concatenate([np.floor((2 * corner + 1) / scale), np.floor((2 * corner + _CELL_PX) / scale)], 1)
    cells = np.concatenate([box, score[:, None], output[2:, rows, columns].T], 1)
    return cells[nms(box, score, 0.5)]


def _crops(image: Image.Image, boxes: Array, side_px: int) -> tuple[NDArray[np.uint8], Array]:
    """What the boxes show, uint8 [N, side_px, side_px, 3], and those boxes that show anything of the picture."""
    whole = np.trunc(boxes).astype(int)
    left, top = np.maximum(whole[:, 0], 1) - 1, np.maximum(whole[:, 1], 1) - 1
    right, bottom = np.minimum(whole[:, 2], image.width), np.minimum(whole[:, 3], image.height)
    inside = (right > left) & (bottom > top)
    corners = np.stack([left, top, right, bottom], 1)[inside].tolist()
    strip = Image.new("RGB", (side_px, side_px * len(corners)))  # one conversion to numpy instead of one per crop
    for number, box in enumerate(corners):
        strip.paste(image.resize((side_px, side_px), _BOX, box), (0, side_px * number))
    return np.array(strip).reshape(len(corners), side_px, side_px, 3), boxes[inside]


def _probability(output: NDArray[np.float32]) -> Array:
    """The softmax of 'no face' and 'face'."""
    probability: Array = 1 / (1 + np.exp((output[:, 0] - output[:, 1]).astype(np.float64)))
    return probability


def _lengths(boxes: Array) -> Array:
    """Width and height of boxes whose right and bottom are their last pixels, [N, 2]."""
    return boxes[:, 2:4] - boxes[:, :2] + 1


def _squared(boxes: Array) -> Array:
    """Boxes grown to squares around their centres."""
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(1, keepdims=True)
    corner = boxes[:, :2] + size / 2 - side / 2
    return np.concatenate([corner, corner + side], 1)
