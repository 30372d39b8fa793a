from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from faceapp.errors import ConfigError, ImageTooLarge, ImageTruncated, NoFace, SeveralFaces
from faceapp.operations.samples import PEOPLE
from faceapp.recognition import DescribedFace, Recogniser, runtime
from faceapp.recognition.detector import Detection
from faceapp.recognition.pipeline import LOW_RESOLUTION_PX, only_face


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def side_px(face: DescribedFace) -> float:
    return max(face.box.right - face.box.left, face.box.bottom - face.box.top)


def two_people(samples: dict[str, Path]) -> Image.Image:
    """Biden, and Obama smaller at his right."""
    pair = Image.new("RGB", (1000, 700), "grey")
    pair.paste(Image.open(samples["biden.jpg"]).crop((300, 100, 900, 800)).resize((600, 700)), (0, 0))
    pair.paste(Image.open(samples["obama.jpg"]).crop((250, 50, 750, 550)).resize((350, 350)), (620, 100))
    return pair


def test_a_described_face_is_plain_numbers_and_one_descriptor(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    description = recogniser.describe(samples["astronaut.png"].read_bytes())

    (face,) = description.faces
    assert (description.photo.width, description.photo.height, description.photo.format) == (512, 512, "PNG")
    assert face.descriptor.shape == (recogniser.dimension,)
    assert face.descriptor.dtype == np.float32
    numbers = [face.box.left, face.box.top, face.box.right, face.box.bottom, face.score, *sum(face.landmarks, ())]
    assert {type(number) for number in numbers} == {float}
    assert len(face.landmarks) == 5
    assert min(description.decode_s, description.detect_s, description.align_s, description.embed_s) > 0


def test_people_are_recognised_on_other_photos(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    enrolled = {
        name: recogniser.describe_for_enrolment(samples[photos[0]].read_bytes()) for name, photos in PEOPLE.items()
    }
    for probe in ("obama2.jpg", "obama3.jpg", "obama_partial_face.jpg", "obama_partial_face2.jpg"):
        found = recogniser.describe(samples[probe].read_bytes()).faces[0].descriptor
        near = {name: distance(found, person.descriptor) for name, person in enrolled.items()}
        assert min(near, key=near.__getitem__) == "obama"
        assert near.pop("obama") <= recogniser.threshold, probe
        assert min(near.values()) > recogniser.threshold, probe


def test_several_faces_come_largest_first(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    faces = recogniser.describe(jpeg(two_people(samples))).faces

    biden = recogniser.describe_for_enrolment(samples["biden.jpg"].read_bytes())
    obama = recogniser.describe_for_enrolment(samples["obama.jpg"].read_bytes())
    assert [side_px(face) for face in faces] == sorted((side_px(face) for face in faces), reverse=True)
    assert distance(faces[0].descriptor, biden.descriptor) <= recogniser.threshold
    assert distance(faces[1].descriptor, obama.descriptor) <= recogniser.threshold


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_are_in_the_upright_photo(recogniser: Recogniser, samples: dict[str, Path], orientation: int) -> None:
    upright = Image.open(samples["astronaut.png"]).crop((50, 0, 450, 500))
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    plain = recogniser.describe(jpeg(upright))
    turned = recogniser.describe(jpeg(upright.transpose(turn), exif=exif))

    assert (turned.photo.width, turned.photo.height) == (400, 500)
    assert turned.faces[0].box.left == pytest.approx(plain.faces[0].box.left, abs=8)
    assert turned.faces[0].box.top == pytest.approx(plain.faces[0].box.top, abs=8)
    assert distance(turned.faces[0].descriptor, plain.faces[0].descriptor) < 0.2


def test_boxes_are_in_pixels_of_the_full_photo(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    image = Image.open(samples["astronaut.png"]).convert("RGB")

    plain = recogniser.describe(jpeg(image)).faces[0].box
    large = recogniser.describe(jpeg(image.resize((3072, 3072)))).faces[0].box

    assert large.left / 6 == pytest.approx(plain.left, abs=8)
    assert large.bottom / 6 == pytest.approx(plain.bottom, abs=8)


def test_a_photo_without_a_face(recogniser: Recogniser) -> None:
    blank = jpeg(Image.new("RGB", (300, 200), "green"))

    assert recogniser.describe(blank).faces == ()
    with pytest.raises(NoFace):
        recogniser.describe_for_enrolment(blank)


def test_two_people_cannot_be_enrolled_from_one_photo(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    with pytest.raises(SeveralFaces):
        recogniser.describe_for_enrolment(jpeg(two_people(samples)))


def face_of(side: float, score: float) -> Detection:
    return Detection(np.array([0.0, 0.0, side, side]), np.zeros((5, 2)), score)


@pytest.mark.parametrize(
    ("others", "counts"),
    [
        ([], False),
        ([(30, 0.75)], False),
        ([(30, 0.75), (20, 0.89)], False),
        ([(30, 0.97)], True),
        ([(90, 0.75)], True),
        ([(30, 0.75), (25, 0.99)], True),
    ],
    ids=["alone", "a speck", "two specks", "small but clear", "doubtful but large", "a speck and somebody"],
)
def test_a_doubtful_speck_is_no_second_person(others: list[tuple[float, float]], counts: bool) -> None:
    faces = [face_of(120, 0.999), *(face_of(*other) for other in others)]

    if counts:
        with pytest.raises(SeveralFaces):
            only_face(faces)
    else:
        assert only_face(faces) is faces[0]


def test_a_small_photo_matches_the_low_descriptor_better(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    gains = []
    for name in ("obama.jpg", "obama2.jpg", "biden.jpg", "astronaut.png"):
        data = samples[name].read_bytes()
        enrolled = recogniser.describe_for_enrolment(data)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        factor = 24 / side_px(enrolled.face)
        small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)

        (face,) = recogniser.describe(jpeg(small)).faces

        assert face.low_resolution
        assert not enrolled.face.low_resolution
        gains.append(
            distance(face.descriptor, enrolled.descriptor) - distance(face.descriptor, enrolled.low_descriptor)
        )
    assert np.mean(gains) > 0.05


def test_a_face_that_is_small_already_is_not_shrunk_further(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    image = Image.open(samples["astronaut.png"]).crop((150, 30, 300, 200)).resize((56, 64))

    enrolled = recogniser.describe_for_enrolment(jpeg(image))

    assert side_px(enrolled.face) <= LOW_RESOLUTION_PX
    assert distance(enrolled.descriptor, enrolled.low_descriptor) < 1e-4


def test_bad_photos_are_image_errors(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    data = samples["obama.jpg"].read_bytes()

    for ask in (recogniser.describe, recogniser.describe_for_enrolment):
        with pytest.raises(ImageTruncated):
            ask(data[: len(data) // 2])
        with pytest.raises(ImageTooLarge):
            ask(jpeg(Image.new("RGB", (20_000, 2))))


def test_bf16_describes_nearly_the_same(recogniser: Recogniser, samples: dict[str, Path]) -> None:
    rough = Recogniser(precision="bf16", device="cpu", max_pixels=50_000_000, max_side_px=16_000)
    for name in ("obama.jpg", "biden.jpg", "astronaut.png"):
        data = samples[name].read_bytes()

        off = distance(rough.describe(data).faces[0].descriptor, recogniser.describe(data).faces[0].descriptor)

        assert 0 < off < 0.05


@pytest.mark.parametrize("has", [{}, {"avx512_bf16": False, "avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_bf16_is_chosen_only_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, has: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    expected = torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32
    assert runtime.pick_precision("auto", cpu) is expected
    assert runtime.pick_precision("auto", cuda) is torch.float32
    assert runtime.pick_precision("fp32", cpu) is torch.float32
    assert runtime.pick_precision("bf16", cuda) is torch.bfloat16


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="'magic' is no embedder"):
        Recogniser(embedder="magic", max_pixels=1, max_side_px=1)
    with pytest.raises(ConfigError, match="'fp8' is no precision"):
        Recogniser(precision="fp8", max_pixels=1, max_side_px=1)
    with pytest.raises(ConfigError, match="'magic' is no device"):
        Recogniser(device="magic", max_pixels=1, max_side_px=1)


@pytest.mark.skipif(torch.version.cuda is not None and torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there() -> None:
    assert runtime.pick_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="no CUDA here"):
        runtime.pick_device("cuda:0")


FORKING = """
import os, signal, sys
from faceapp.recognition import Recogniser
import torch

photo = open(sys.argv[1], "rb").read()
# loaded and warmed up in the parent, as a Celery worker does before it forks
recogniser = Recogniser(max_pixels=50_000_000, max_side_px=16_000)
expected = recogniser.describe(photo).faces[0].descriptor if sys.argv[2] == "used" else None
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        signal.alarm(240)  # a child that hangs dies, and is counted
        found = recogniser.describe(photo).faces[0].descriptor
        same = expected is None or (found == expected).all()
        os._exit(0 if same and torch.get_num_threads() == 1 else 1)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("parent", ["fresh", "used"])
def test_forked_processes_run_the_model_at_once(samples: dict[str, Path], parent: str) -> None:
    """In a process of its own: this one has threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(samples["astronaut.png"]), parent],
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.stdout.strip() == "[0, 0, 0]", done.stderr
