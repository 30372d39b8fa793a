"""torchvision, where it is sound.

Its compiled operators belong to one build of torch. Beside another (a CPU torch and torchvision's default wheel, say)
they do not load, and `import torchvision` fails with "operator torchvision::nms does not exist"
(pytorch/pytorch#157648).
This is the only module that asks; nobody else imports torchvision.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Boxes = NDArray[np.float64]

_DECLARED = ("nms", "qnms")
"""What torchvision 0.28 gives a fake implementation at import, so that it must be declared."""


@cache
def compiled_ops() -> bool:
    """Whether torchvision's compiled operators load into this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        return hasattr(torch.ops.torchvision, "nms")
    except (OSError, RuntimeError):
        return False


@cache
def _declaration() -> Any:
    """Declare the missing operators, without an implementation; they last as long as the returned library."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _DECLARED:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library


def facenet_pytorch() -> ModuleType:
    """The package facenet_pytorch, which imports torchvision. Raises ImportError when one of the two is missing.

    Without the compiled operators its InceptionResnetV1 works; its own MTCNN needs `use_numpy_nms` besides.
    """
    if not compiled_ops():
        _declaration()
    return importlib.import_module("facenet_pytorch")


def nms(boxes: Boxes, scores: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """Non-maximum suppression: the indices to keep, best first.

    `boxes` [N, 4] are left, top, right, bottom; a box goes when it overlaps a better one by more than `threshold`
    (intersection over union).
    """
    if compiled_ops():
        found = torch.ops.torchvision.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        kept: NDArray[np.int64] = found.numpy()
        return kept
    return numpy_nms(boxes, scores, threshold)


def numpy_nms(
    boxes: Boxes, scores: NDArray[np.float64], threshold: float, *, of_smaller: bool = False
) -> NDArray[np.int64]:
    """`nms` without torchvision. With `of_smaller` the overlap is measured against the smaller box, and a box's right
    and bottom are its last pixels, as MTCNN's last stage wants it."""
    order = np.argsort(-scores, kind="stable")
    left, top, right, bottom = boxes[order].T
    last = 1.0 if of_smaller else 0.0
    area = (right - left + last) * (bottom - top + last)
    width = np.minimum(right[:, None], right) - np.maximum(left[:, None], left) + last
    height = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top) + last
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    whole = np.minimum(area[:, None], area) if of_smaller else area[:, None] + area - shared
    overlaps = shared > threshold * whole
    alive = np.ones(len(order), bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~overlaps[index, index + 1 :]
    kept: NDArray[np.int64] = order[alive]
    return kept
