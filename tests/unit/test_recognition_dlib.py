"""Beside dlib itself: the same weights must give the same numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from faceapp.errors import WeightsError
from faceapp.recognition import Recogniser, dlib_resnet
from faceapp.recognition.alignment import chip_points, cut_chip, similarity
from faceapp.recognition.files import DLIB_LANDMARKS, DLIB_RESNET, package_file
from faceapp.recognition.landmarks import DlibLandmarks
from faceapp.recognition.runtime import Network

RESNET, LANDMARKS = package_file(*DLIB_RESNET), package_file(*DLIB_LANDMARKS)
PORTRAITS = ("obama.jpg", "obama2.jpg", "biden.jpg", "astronaut.png")


@pytest.fixture(scope="module")
def portraits(samples: dict[str, Path]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(samples[name].read_bytes())).convert("RGB") for name in PORTRAITS]


@pytest.fixture(scope="module")
def dlib_faces(portraits: list[Image.Image]) -> list[Any]:
    """dlib's detection in each portrait."""
    detector = dlib.get_frontal_face_detector()
    return [detector(np.asarray(image))[0] for image in portraits]


@pytest.fixture(scope="module")
def dlib_points() -> Any:
    return dlib.shape_predictor(str(LANDMARKS))


def points_of(shape: Any) -> NDArray[np.float64]:
    return np.array([(part.x, part.y) for part in shape.parts()], np.float64)


@pytest.mark.slow
def test_descriptors_equal_dlibs(portraits: list[Image.Image], dlib_faces: list[Any], dlib_points: Any) -> None:
    reference = dlib.face_recognition_model_v1(str(RESNET))
    pixels = [np.asarray(image) for image in portraits]
    chips = [dlib.get_face_chip(p, dlib_points(p, face)) for p, face in zip(pixels, dlib_faces, strict=True)]
    network = Network(dlib_resnet.load(RESNET), side_px=150, device=torch.device("cpu"))

    descriptors = network(np.stack(chips))

    expected = np.stack([np.array(reference.compute_face_descriptor(chip)) for chip in chips])
    assert np.abs(descriptors - expected).max() < 1e-4
    assert np.abs(network(chips[0][None]) - expected[0]).max() < 1e-4


def test_a_whole_photo_is_described_as_dlib_does(
    samples: dict[str, Path], dlib_faces: list[Any], dlib_points: Any, recogniser: Recogniser
) -> None:
    """Other detector, other chip resampling: still far nearer than two photos of a person are to each other."""
    reference = dlib.face_recognition_model_v1(str(RESNET))
    for name, rectangle in zip(PORTRAITS, dlib_faces, strict=True):
        data = samples[name].read_bytes()
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        expected = np.array(reference.compute_face_descriptor(pixels, dlib_points(pixels, rectangle)))

        found = recogniser.describe(data).faces[0].descriptor

        assert np.linalg.norm(found - expected) < 0.25, name


def test_landmarks_equal_dlibs(portraits: list[Image.Image], dlib_faces: list[Any], dlib_points: Any) -> None:
    """Dozens of boxes around real faces. The last bit of a float can make a tree look at the next pixel, and that can
    move a point over the border of two pixels."""
    landmarks = DlibLandmarks(LANDMARKS)
    distances = []
    for image, face in zip(portraits, dlib_faces, strict=True):
        pixels = np.asarray(image)
        for shift in (-12, -5, 0, 3, 9):
            for grow in (-10, 0, 14):
                box = (face.left() + shift - grow, face.top() - shift - grow, face.right() + shift, face.bottom())
                expected = points_of(dlib_points(pixels, dlib.rectangle(*box)))
                distances.append(float(np.abs(landmarks(image, box) - expected).max()))
    assert max(distances) <= 1
    assert np.mean(np.array(distances) == 0) > 0.5


def test_landmarks_of_a_face_that_reaches_over_the_border(portraits: list[Image.Image], dlib_points: Any) -> None:
    image = portraits[0].crop((380, 100, 700, 500))
    landmarks = DlibLandmarks(LANDMARKS)
    box = (-120, -20, 200, 300)

    expected = points_of(dlib_points(np.asarray(image), dlib.rectangle(*box)))

    assert np.abs(landmarks(image, box) - expected).max() <= 4


def ramp() -> Image.Image:
    """A picture whose red is x / 2 and green y / 2: what a chip shows tells where it was cut."""
    y, x = np.mgrid[0:500, 0:500]
    return Image.fromarray(np.stack([x / 2, y / 2, 0 * x], 2).astype(np.uint8))


@pytest.mark.parametrize(
    "points",
    [
        [(300, 200), (270, 205), (190, 202), (222, 204), (246, 260)],
        [(330, 180), (290, 170), (180, 150), (215, 160), (240, 240)],
        [(200, 300), (205, 270), (202, 190), (204, 222), (260, 246)],
        [(262, 204), (252, 205), (222, 204), (234, 205), (242, 226)],
        [(80, 60), (60, 62), (8, 61), (30, 62), (45, 95)],
    ],
    ids=["upright", "turned", "lying", "small", "cut by the border"],
)
def test_chips_are_cut_where_dlib_cuts_them(points: list[tuple[int, int]]) -> None:
    image = ramp()
    shape = dlib.full_object_detection(dlib.rectangle(0, 0, 499, 499), dlib.points([dlib.point(*p) for p in points]))

    chip = cut_chip(image, np.array(points, np.float64), 150).astype(int)

    expected = dlib.get_face_chip(np.asarray(image), shape).astype(int)
    seen = (chip[..., :2].min(2) > 3) & (expected[..., :2].min(2) > 3)
    assert seen.mean() > 0.4
    assert np.abs(chip - expected)[seen].max() <= 1  # half a pixel of the picture is a quarter of a level


def test_similarity_undoes_what_was_done() -> None:
    source = chip_points(150)
    turn = np.array([[0.9, -0.5], [0.5, 0.9]])

    matrix, shift = similarity(source, source @ turn.T + (3.0, -7.0))

    np.testing.assert_allclose(matrix, turn, atol=1e-12)
    np.testing.assert_allclose(shift, (3.0, -7.0), atol=1e-9)


def test_a_similarity_of_points_that_coincide_is_finite() -> None:
    matrix, shift = similarity(np.ones((5, 2)), chip_points(150))

    assert np.isfinite(matrix).all()
    assert np.isfinite(shift).all()


@pytest.mark.parametrize("load", [dlib_resnet.load, DlibLandmarks], ids=["resnet", "landmarks"])
class TestDamagedWeights:
    @staticmethod
    def stored(load: Any) -> bytes:
        return (RESNET if load is dlib_resnet.load else LANDMARKS).read_bytes()

    @pytest.mark.parametrize("kept", [0, 1, 20, 400, 0.5, 0.999_999, -1])
    def test_a_truncated_file(self, tmp_path: Path, load: Any, kept: float) -> None:
        data = self.stored(load)
        path = tmp_path / "weights.dat"
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])

        with pytest.raises(WeightsError, match=r"weights\.dat is damaged near"):
            load(path)

    def test_a_file_with_more_behind(self, tmp_path: Path, load: Any) -> None:
        path = tmp_path / "weights.dat"
        path.write_bytes(self.stored(load) + b"\x01\x01")

        with pytest.raises(WeightsError, match="too many"):
            load(path)

    @pytest.mark.parametrize("at", [0, 1, 2, 3, 40, 100])
    def test_an_altered_head(self, tmp_path: Path, load: Any, at: int) -> None:
        data = bytearray(self.stored(load))
        data[at] ^= 0xFF
        path = tmp_path / "weights.dat"
        path.write_bytes(bytes(data))

        with pytest.raises(WeightsError):
            load(path)

    def test_the_other_model(self, tmp_path: Path, load: Any) -> None:
        with pytest.raises(WeightsError):
            load(LANDMARKS if load is dlib_resnet.load else RESNET)

    def test_no_file(self, tmp_path: Path, load: Any) -> None:
        with pytest.raises(WeightsError, match="cannot be read"):
            load(tmp_path / "missing.dat")


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    data = bytearray(RESNET.read_bytes())
    first_weights = data.index(b"con_4") + 40
    data[first_weights : first_weights + 8] = np.array([np.nan, np.inf], "<f4").tobytes()
    path = tmp_path / "weights.dat"
    path.write_bytes(bytes(data))

    with pytest.raises(WeightsError, match="not finite"):
        dlib_resnet.load(path)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(WeightsError, match="install the package no_such_package"):
        package_file("no_such_package", "weights.dat")
