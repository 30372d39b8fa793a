from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faceapp.errors import WeightsError
from faceapp.recognition import Recogniser, facenet, load_course_gallery, vision
from faceapp.recognition.detector import Detector
from faceapp.recognition.runtime import Network


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights of the right shapes, with the classifier's layer that VGGFace2's file has."""
    torch.manual_seed(5)
    network = vision.facenet_pytorch().InceptionResnetV1(classify=True, num_classes=8631)
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vggface2.pt"
    torch.save(state, path)
    return path


def test_a_face_is_a_unit_vector(weights: Path, samples: dict[str, Path]) -> None:
    recogniser = Recogniser(
        embedder="facenet", weights=str(weights), precision="fp32", device="cpu", max_pixels=10**7, max_side_px=10**4
    )

    (face,) = recogniser.describe(samples["astronaut.png"].read_bytes()).faces

    assert (recogniser.dimension, recogniser.model) == (512, "facenet-vggface2")
    assert face.descriptor.shape == (512,)
    assert np.linalg.norm(face.descriptor) == pytest.approx(1, abs=1e-4)


def test_descriptors_equal_facenet_pytorchs(weights: Path, state: dict[str, torch.Tensor]) -> None:
    package = vision.facenet_pytorch()
    theirs = package.InceptionResnetV1()
    theirs.load_state_dict({name: value for name, value in state.items() if not name.startswith("logits.")})
    chips = np.random.default_rng(0).integers(0, 255, (2, 160, 160, 3), np.uint8)
    pixels = torch.from_numpy(chips).permute(0, 3, 1, 2).float()

    found = Network(facenet.load(str(weights)), side_px=160, device=torch.device("cpu"))(chips)

    with torch.inference_mode():
        expected = theirs.eval()(package.fixed_image_standardization(pixels)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_chips_are_cut_where_facenet_pytorch_cuts_them(samples: dict[str, Path]) -> None:
    image = Image.open(samples["astronaut.png"]).convert("RGB")
    (face,) = Detector(device=torch.device("cpu"))(image)
    for box in (face.box, np.array([-20.0, -10.0, 90.0, 130.0]), np.array([450.0, 400.0, 600.0, 580.0])):
        expected = vision.facenet_pytorch().extract_face(image, box).permute(1, 2, 0).numpy()

        np.testing.assert_array_equal(facenet.cut_chip(image, box), expected.astype(np.uint8))


def refused(weights: str) -> str:
    with pytest.raises(WeightsError) as caught:
        Recogniser(embedder="facenet", weights=weights, max_pixels=10**7, max_side_px=10**4)
    return caught.value.detail


def test_no_weights_named() -> None:
    assert "FACEAPP_WEIGHTS" in refused("")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refused(str(tmp_path / "missing.pt"))
    assert "cannot be read" in refused(str(tmp_path))


def test_weights_that_are_no_weights(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "weights.pt"
    for data in (b"", b"not weights\n", weights.read_bytes()[:1000], weights.read_bytes()[:-1000]):
        path.write_bytes(data)
        assert "not a file that torch saved" in refused(str(path))


class Trap:
    """A pickle that runs code when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")

    assert "not a file that torch saved" in refused(str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("change", ["list", "missing", "extra", "shape", "type", "nan"])
def test_weights_of_another_network(tmp_path: Path, state: dict[str, torch.Tensor], change: str) -> None:
    altered: Any = dict(state)
    if change == "list":
        altered = list(state.values())
    elif change == "missing":
        del altered["last_linear.weight"]
    elif change == "extra":
        altered["more"] = torch.zeros(1)
    elif change == "shape":
        altered["last_linear.weight"] = torch.zeros(512, 1791)
    elif change == "type":
        altered["last_linear.weight"] = 3
    else:
        altered["last_linear.weight"] = torch.full((512, 1792), torch.nan)
    path = tmp_path / "weights.pt"
    torch.save(altered, path)

    assert refused(str(path)).startswith(str(path))


def test_the_course_gallery(tmp_path: Path) -> None:
    vectors = [torch.randn(1, 512, requires_grad=True), torch.randn(1, 512)]
    torch.save([vectors, ["Ada Lovelace", "Grace Hopper"]], tmp_path / "data.pt")

    people = load_course_gallery(tmp_path / "data.pt")

    assert [name for name, _ in people] == ["Ada Lovelace", "Grace Hopper"]
    for (_, found), expected in zip(people, vectors, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.detach().numpy()[0])


@pytest.mark.parametrize(
    "saved",
    [
        {"a": 1},
        [[torch.zeros(512)]],
        [[torch.zeros(512)], ["ada", "grace"]],
        [[torch.zeros(128)], ["ada"]],
        [[torch.zeros(512)], [7]],
        [[[0.0] * 512], ["ada"]],
        [["ada"], [torch.zeros(512)]],
        [3, 4],
    ],
)
def test_a_course_gallery_of_another_shape(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "data.pt")

    with pytest.raises(WeightsError, match="is no gallery"):
        load_course_gallery(tmp_path / "data.pt")
