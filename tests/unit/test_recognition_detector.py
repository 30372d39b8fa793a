from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from faceapp.recognition import mtcnn, vision
from faceapp.recognition.detector import QUICK, Detection, Detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def astronaut(samples: dict[str, Path]) -> Image.Image:
    return Image.open(samples["astronaut.png"]).convert("RGB")


def centre(face: Detection) -> NDArray[np.float64]:
    return (face.box[:2] + face.box[2:]) / 2


def pnet_of(theirs: nn.Module, pixels: Tensor) -> Tensor:
    correction, probability = theirs(pixels)
    return torch.cat([probability, correction], 1)


def rnet_of(theirs: nn.Module, pixels: Tensor) -> Tensor:
    correction, probability = theirs(pixels)
    return torch.cat([probability, correction], 1)


def onet_of(theirs: nn.Module, pixels: Tensor) -> Tensor:
    correction, landmarks, probability = theirs(pixels)
    return torch.cat([probability, correction, landmarks], 1)


@pytest.mark.parametrize(
    ("ours", "name", "all_of", "side_px"),
    [(mtcnn.pnet, "PNet", pnet_of, 48), (mtcnn.rnet, "RNet", rnet_of, 24), (mtcnn.onet, "ONet", onet_of, 48)],
)
def test_the_networks_are_facenet_pytorchs(
    ours: Callable[[], nn.Module], name: str, all_of: Callable[[nn.Module, Tensor], Tensor], side_px: int
) -> None:
    theirs = getattr(vision.facenet_pytorch().models.mtcnn, name)()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (4, 3, side_px, side_px))).float()

    with torch.inference_mode():
        output = ours().eval()(pixels)
        expected = all_of(theirs.eval(), (pixels - 127.5) * 0.0078125)

    output = torch.cat([output[:, :2].softmax(1), output[:, 2:]], 1)
    assert torch.allclose(output, expected, atol=1e-4)


def test_a_portrait_is_one_face_with_its_landmarks(detector: Detector, astronaut: Image.Image) -> None:
    (face,) = detector(astronaut)

    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert face.score > 0.99
    np.testing.assert_allclose(centre(face), (224, 115), atol=15)
    assert 90 < face.side_px < 140
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("factor", [0.15, 0.3, 0.6, 2.0, 4.0])
def test_the_face_is_where_it_was_at_every_size(detector: Detector, astronaut: Image.Image, factor: float) -> None:
    small = astronaut.resize((round(512 * factor), round(512 * factor)), Image.Resampling.LANCZOS)

    (face,) = detector(small)

    np.testing.assert_allclose(centre(face) / factor, (224, 115), atol=20)
    assert 80 < face.side_px / factor < 150


def test_small_faces_of_a_group_are_found_by_the_closer_look(detector: Detector, samples: dict[str, Path]) -> None:
    group = Image.new("RGB", (1200, 800), "grey")
    portrait = Image.open(samples["biden.jpg"]).convert("RGB").crop((400, 150, 800, 650)).resize((64, 80))
    places = [(60 + 280 * column, 60 + 260 * row) for row in range(3) for column in range(4)]
    for place in places:
        group.paste(portrait, place)

    found = detector(group)

    assert len(detector.look(group, QUICK)) < len(places)
    assert len(found) == len(places)
    middles = np.array([centre(face) for face in found])
    for x, y in places:
        assert np.abs(middles - (x + 32, y + 40)).max(1).min() < 16


def test_faces_come_largest_first(detector: Detector, astronaut: Image.Image) -> None:
    face = astronaut.crop((124, 15, 324, 215))
    pair = Image.new("RGB", (600, 300))
    pair.paste(face.resize((120, 120)), (10, 100))
    pair.paste(face.resize((280, 280)), (300, 10))

    sides = [found.side_px for found in detector(pair)]

    assert len(sides) == 2
    assert sides[0] > 1.5 * sides[1]


@pytest.mark.parametrize("name", ["obama_partial_face.jpg", "obama_partial_face2.jpg"])
def test_a_face_cut_by_the_border_is_found(detector: Detector, samples: dict[str, Path], name: str) -> None:
    image = Image.open(samples[name]).convert("RGB")

    (face,) = detector(image)

    assert face.box[0] < 10 or face.box[2] > image.width - 10


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (11, 11), (12, 12), (13, 300), (640, 24), (5000, 30)])
def test_pictures_of_odd_sizes_have_no_face(detector: Detector, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)

    assert detector(Image.fromarray(noise)) == []
    assert detector(Image.new("RGB", size, "white")) == []


def slow_nms(boxes: NDArray[np.float64], scores: NDArray[np.float64], threshold: float, last: float) -> list[int]:
    """The definition, box by box; `last` = 1 measures the overlap against the smaller box, in whole pixels."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            shared = float(np.prod(np.maximum(high - low + last, 0)))
            areas = [float(np.prod(boxes[k, 2:] - boxes[k, :2] + last)) for k in (i, j)]
            if shared > threshold * (min(areas) if last else sum(areas) - shared):
                break
        else:
            kept.append(i)
    return kept


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 20)] * 2), max_size=25),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    of_smaller=st.booleans(),
)
def test_numpy_nms_is_the_definition(
    corners: list[tuple[int, int, int, int]], threshold: float, of_smaller: bool
) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float64).reshape(-1, 4)
    scores = np.random.default_rng(len(corners)).permutation(len(corners)).astype(np.float64)

    kept = vision.numpy_nms(boxes, scores, threshold, of_smaller=of_smaller)

    assert kept.tolist() == slow_nms(boxes, scores, threshold, 1.0 if of_smaller else 0.0)


def test_nms_gives_the_same_with_torchvision_and_without() -> None:
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 100, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (200, 2))], 1)
    scores = rng.uniform(size=200)

    assert vision.nms(boxes, scores, 0.5).tolist() == vision.numpy_nms(boxes, scores, 0.5).tolist()
    assert vision.nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.slow
def test_facenet_pytorch_imports_whatever_torchvision_was_built_for() -> None:
    """Pins the workaround: where torchvision's operators do not load, its plain import fails, and ours does not."""
    script = (
        "from faceapp.recognition import vision\n"
        "package = vision.facenet_pytorch()\n"
        "print(package.InceptionResnetV1.__name__, vision.compiled_ops())"
    )
    ours = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)

    name, compiled = ours.stdout.split()
    assert name == "InceptionResnetV1"
    assert (plain.returncode == 0) == (compiled == "True"), plain.stderr
