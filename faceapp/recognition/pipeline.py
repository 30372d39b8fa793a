"""From a photo's bytes to the faces in it: decode, detect, align, embed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceapp import images
from faceapp.errors import NoFace, SeveralFaces
from faceapp.recognition.detector import Detection, Detector
from faceapp.recognition.embedders import create_embedder
from faceapp.recognition.runtime import pick_device, pick_precision, use_one_thread
from faceapp.schema import Box, Photo

Descriptor = NDArray[np.float32]

LOW_RESOLUTION_PX = 45
"""A smaller face is so blurred that it is nearer to faces which were shrunk to this size before they were described.

Chosen on `benchmarks.accuracy`'s photos shrunk to many sizes, which are few: of faces below 20 px 5 of 8 were
recognised instead of none, from 20 to 26 px 5 of 5 instead of 2, from 26 to 50 px about as many either way, from 50 to
60 px 23 of 27 instead of 25. A gallery shrunk to 30 px and less names strangers.
"""

_SPECK_SCORE = 0.9
_SPECK_PART = 1 / 3


@dataclass(frozen=True, kw_only=True)
class DescribedFace:
    """A face: where it is in the full-size upright photo, and its descriptor, float32 [dimension]."""

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    score: float
    descriptor: Descriptor
    low_resolution: bool
    """Whether the face has so few pixels that it should be compared with the gallery's low descriptors."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The faces of a photo, largest first, and the seconds that each stage took."""

    photo: Photo
    faces: tuple[DescribedFace, ...]
    decode_s: float
    detect_s: float
    align_s: float
    embed_s: float


@dataclass(frozen=True, kw_only=True)
class EnrolledFace:
    """The one face of an enrolment photo; `low_descriptor` is the same face's as a small picture shows it."""

    photo: Photo
    face: DescribedFace
    descriptor: Descriptor
    low_descriptor: Descriptor


class Recogniser:
    """The model, loaded and warm. Processes forked after it was made run it at once and share its memory.

    `embedder` is `dlib` or `facenet` (which needs `weights`), `precision` is `auto`, `fp32` or `bf16`, `device` is
    `auto`, `cpu` or `cuda:N`. Photos beyond the limits are refused (`images.decode`).

    Raises WeightsError when a model cannot be loaded, ConfigError for an option that does not fit this machine.
    """

    def __init__(
        self,
        *,
        embedder: str = "dlib",
        weights: str = "",
        precision: str = "auto",
        device: str = "auto",
        max_pixels: int,
        max_side_px: int,
        max_jpeg_pixels: int = 0,
    ) -> None:
        use_one_thread()
        place = pick_device(device)
        self.device = place.type
        self._detector = Detector(device=place)
        self._embedder = create_embedder(
            embedder, weights=weights, device=place, dtype=pick_precision(precision, place)
        )
        self._limits = {"max_pixels": max_pixels, "max_jpeg_pixels": max_jpeg_pixels, "max_side_px": max_side_px}
        self.model = self._embedder.model
        self.dimension = self._embedder.dimension
        self.threshold = self._embedder.threshold

    def describe(self, photo: bytes) -> Description:
        """All faces in a photo. Raises ImageError."""
        start_s = time.perf_counter()
        decoded = images.decode(photo, **self._limits)
        decoded_s = time.perf_counter()
        faces = self._detector(decoded.image)
        detected_s = time.perf_counter()
        chips = [self._embedder.chip(decoded.image, face) for face in faces]
        aligned_s = time.perf_counter()
        descriptors = self._embedder.embed(chips)
        return Description(
            photo=decoded.photo,
            faces=tuple(
                _described(face.scaled(decoded.scale), descriptor)
                for face, descriptor in zip(faces, descriptors, strict=True)
            ),
            decode_s=decoded_s - start_s,
            detect_s=detected_s - decoded_s,
            align_s=aligned_s - detected_s,
            embed_s=time.perf_counter() - aligned_s,
        )

    def describe_for_enrolment(self, photo: bytes) -> EnrolledFace:
        """The one face in a photo. Raises ImageError, NoFace, SeveralFaces."""
        decoded = images.decode(photo, **self._limits)
        face = only_face(self._detector(decoded.image))
        descriptor, low = self._embedder.embed(
            [self._embedder.chip(decoded.image, face), self._embedder.chip(*_shrunk(decoded.image, face))]
        )
        described = _described(face.scaled(decoded.scale), descriptor)
        return EnrolledFace(photo=decoded.photo, face=described, descriptor=descriptor, low_descriptor=low)


def only_face(faces: list[Detection]) -> Detection:
    """The face that an enrolment photo is about, of those found in it, largest first. Raises NoFace, SeveralFaces.

    A portrait before a patterned wall may show the detector a doubtful speck of a second face. Whoever sends it sees
    one person, so a face that is both doubtful and much smaller than the largest does not count. A clear face does,
    however small: it may be the one that is meant.
    """
    if not faces:
        raise NoFace
    speck_px = _SPECK_PART * faces[0].side_px
    if any(face.score >= _SPECK_SCORE or face.side_px >= speck_px for face in faces[1:]):
        raise SeveralFaces
    return faces[0]


def _shrunk(image: Image.Image, face: Detection) -> tuple[Image.Image, Detection]:
    """The picture made so small that the face is blurred as in a small photo, and the face in it."""
    factor = min(1.0, LOW_RESOLUTION_PX / face.side_px)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=2.0), face.scaled(factor)


def _described(face: Detection, descriptor: Descriptor) -> DescribedFace:
    left, top, right, bottom = (float(edge) for edge in face.box)
    return DescribedFace(
        box=Box(left=left, top=top, right=right, bottom=bottom),
        landmarks=tuple((float(x), float(y)) for x, y in face.landmarks),
        score=face.score,
        descriptor=descriptor,
        low_resolution=face.side_px < LOW_RESOLUTION_PX,
    )
