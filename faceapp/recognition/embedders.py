"""Who a face is: networks that turn an aligned chip into a descriptor. Near descriptors are the same person."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from faceapp.errors import ConfigError
from faceapp.recognition import dlib_resnet, facenet
from faceapp.recognition.alignment import cut_chip, scale_of, similarity
from faceapp.recognition.detector import Detection
from faceapp.recognition.files import DLIB_LANDMARKS, DLIB_RESNET, package_file
from faceapp.recognition.landmarks import DlibLandmarks
from faceapp.recognition.runtime import Network

Chip = NDArray[np.uint8]

# Where MTCNN's five points lie on average in dlib's 150 px chip, and the box that dlib's own detector draws there.
# Fitted on real faces: the landmark trees start from a box and were trained on that detector's.
_MTCNN_IN_CHIP = np.array([[45.73, 43.04], [102.32, 42.98], [74.16, 76.47], [49.03, 103.33], [99.81, 103.23]])
_DLIB_BOX_CENTRE = np.array([72.66, 73.34])
_DLIB_BOX_SIDE = 129.27


class Embedder(ABC):
    """Cuts chips and describes them."""

    model: ClassVar[str]
    """Stored with every descriptor: those of different models cannot be compared."""
    dimension: ClassVar[int]
    threshold: ClassVar[float]
    """The largest Euclidean distance that counts as the same person."""
    side_px: ClassVar[int]

    def __init__(self, network: Network) -> None:
        self._network = network

    @abstractmethod
    def chip(self, image: Image.Image, face: Detection) -> Chip:
        """The face as the network wants it, uint8 RGB [side_px, side_px, 3]."""

    def embed(self, chips: list[Chip]) -> NDArray[np.float32]:
        """One descriptor per chip, float32 [N, dimension]."""
        if not chips:
            return np.zeros((0, self.dimension), np.float32)
        return self._network(np.stack(chips))


class DlibEmbedder(Embedder):
    """dlib's ResNet on chips cut at its five landmarks."""

    model = "dlib-resnet-v1"
    dimension = dlib_resnet.DIMENSION
    # dlib's own 0.6 takes a stranger for somebody once in 450 comparisons: too often beside a gallery of a hundred
    # photos. At 0.55 it is once in 3,300 (a normal fit to 3,232 pairs of two people), and 84 of 89 pairs of one person
    # are still near enough. It was chosen on these pairs: `benchmarks.accuracy` prints them and what that is worth.
    threshold = 0.55
    side_px = dlib_resnet.CHIP_PX

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        network = dlib_resnet.load(package_file(*DLIB_RESNET))
        super().__init__(Network(network, side_px=self.side_px, device=device, dtype=dtype))
        self._landmarks = DlibLandmarks(package_file(*DLIB_LANDMARKS))

    def chip(self, image: Image.Image, face: Detection) -> Chip:
        matrix, origin = similarity(_MTCNN_IN_CHIP, face.landmarks)
        centre = matrix @ _DLIB_BOX_CENTRE + origin
        half = _DLIB_BOX_SIDE * scale_of(matrix) / 2
        left, top, right, bottom = (round(float(edge)) for edge in (*(centre - half), *(centre + half)))
        points = self._landmarks(image, (left, top, right, bottom))
        return cut_chip(image, points, self.side_px)


class FacenetEmbedder(Embedder):
    """facenet-pytorch's InceptionResnetV1 on MTCNN's boxes, with weights that the user brings."""

    model = "facenet-vggface2"
    dimension = facenet.DIMENSION
    threshold = 1.0  # of unit vectors: an angle of 60 degrees; calibrate it for the weights in use
    side_px = facenet.CHIP_PX

    def __init__(self, *, weights: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(Network(facenet.load(weights), side_px=self.side_px, device=device, dtype=dtype))

    def chip(self, image: Image.Image, face: Detection) -> Chip:
        return facenet.cut_chip(image, face.box)


def create_embedder(name: str, *, weights: str, device: torch.device, dtype: torch.dtype) -> Embedder:
    """The embedder called `name`. Raises ConfigError for another name, WeightsError when its weights do not load."""
    if name == "dlib":
        return DlibEmbedder(device=device, dtype=dtype)
    if name == "facenet":
        return FacenetEmbedder(weights=weights, device=device, dtype=dtype)
    raise ConfigError(f"{name!r} is no embedder: it is dlib or facenet")
