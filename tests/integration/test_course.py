"""G4: a course's people, its data file and its settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from faceapp.config import Settings
from faceapp.errors import BadRequest, ConfigError, GalleryFull, GalleryMismatch, InvalidName, NotFound
from faceapp.local.course import for_course
from faceapp.operations import oneshot
from faceapp.operations.data_file import import_data
from faceapp.operations.folders import find_people
from faceapp.operations.labelled import Labelled, choose, read_labels
from faceapp.people import Gallery, People
from faceapp.people.imported import import_vectors
from faceapp.people.people import VECTORS
from faceapp.recognition import Recogniser, vision
from faceapp.storage import Storage
from tests.support.services import wait_until

ID = "1225754101"


@pytest.fixture
def folder(samples: dict[str, Path], tmp_path: Path) -> Path:
    """The course's layout: photos of all people in one folder."""
    folder = tmp_path / "face_images"
    folder.mkdir()
    for number, photo in enumerate(("obama.jpg", "biden.jpg", "astronaut.png", "obama2.jpg", "obama3.jpg")):
        shutil.copy(samples[photo], folder / f"test_{number:03}{Path(photo).suffix}")
    return folder


def csv_of(folder: Path, text: str) -> Path:
    path = folder.parent / "classification.csv"
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "Image,Results\ntest_000,Barack\ntest_001,Joe\n",
        "test_000.jpg,Barack\r\ntest_001.jpg,Joe\r\n",
        '\ufeffImage,Results\n"test_000", Barack \n\ntest_001,Joe,more\n',
    ],
)
def test_labels_are_read_with_and_without_header_and_extensions(folder: Path, text: str) -> None:
    """G4"""
    found, missing = read_labels(folder, csv_of(folder, text))
    assert [(each.photo.name, each.name) for each in found] == [("test_000.jpg", "Barack"), ("test_001.jpg", "Joe")]
    assert missing == []


def test_labels_of_photos_that_are_not_there_are_told(folder: Path) -> None:
    """G4: a course hands out a CSV of 1,000 photos beside a folder of 100."""
    found, missing = read_labels(folder, csv_of(folder, "Image,Results\ntest_000,Barack\ntest_999,Joe\n"))
    assert ([each.name for each in found], missing) == (["Barack"], ["test_999"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\nc,d\n", "names no photo"),
        ("test_000\n", "Line 1"),
        ("test_000,\n", "Line 1"),
        ("", "names no photo"),
        ("Image;Results\ntest_000;Barack\n", "A comma belongs between them"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(folder: Path, text: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read_labels(folder, csv_of(folder, text))


def test_a_csv_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        read_labels(folder, folder / "missing.csv")
    with pytest.raises(BadRequest, match="UTF-8"):
        read_labels(folder, folder / "test_000.jpg")


def test_a_folder_that_is_not_there_and_one_without_folders_are_told(folder: Path) -> None:
    """A user's first tries of `people import`."""
    with pytest.raises(BadRequest, match="missing is not a folder"):
        read_labels(folder / "missing", csv_of(folder, "test_000,Barack\n"))
    with pytest.raises(BadRequest, match="take --csv"):
        find_people(folder)


def labelled(folder: Path, *names: str) -> list[Labelled]:
    photos = sorted(folder.iterdir())
    return [Labelled(photo=photo, name=name) for photo, name in zip(photos, names, strict=True)]


def test_one_photo_a_person_is_enrolled_where_that_is_enough(recogniser: Recogniser, folder: Path) -> None:
    """G4"""
    photos = labelled(folder, "barack", "joe", "eileen", "barack", "barack")
    choice = choose(recogniser, photos, threshold=recogniser.threshold)
    assert {name: len(chosen) for name, chosen in choice.people.items()} == {"barack": 1, "eileen": 1, "joe": 1}
    assert choice.wrong == {}


def test_more_photos_are_enrolled_of_whom_one_is_not_enough(recogniser: Recogniser, folder: Path) -> None:
    """G4: two of the course's eight people look different enough on their photos to need two."""
    photos = labelled(folder, "barack", "two faces", "two faces", "barack", "barack")
    choice = choose(recogniser, photos, threshold=recogniser.threshold)
    assert {name: len(chosen) for name, chosen in choice.people.items()} == {"barack": 1, "two faces": 2}
    assert choice.wrong == {}


def test_a_photo_that_cannot_be_answered_right_is_told(recogniser: Recogniser, folder: Path) -> None:
    (folder / "test_005.jpg").write_bytes(b"no photo")
    photos = labelled(folder, "barack", "joe", "eileen", "barack", "barack", "ghost")
    choice = choose(recogniser, photos, threshold=recogniser.threshold)
    assert choice.wrong == {folder / "test_005.jpg": "no_face"}
    assert "ghost" not in choice.people


def test_the_nearest_person_is_named_however_far_if_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """G4: the course's own code names the nearest and knows no strangers."""
    people = tmp_path / "people" / "eileen"
    people.mkdir(parents=True)
    shutil.copy(folder / "test_002.png", people)
    stranger = [folder / "test_001.jpg"]
    settings = Settings(precision="fp32", device="cpu", threshold=0.4)
    assert list(oneshot.names(settings, stranger, people.parent)) == ["unknown"]
    assert list(oneshot.names(replace(settings, nearest="always"), stranger, people.parent)) == ["eileen"]


def test_a_course_is_one_option() -> None:
    """G4: prefix, policy, N and who may post, at once; what the user has set stays."""
    chosen = for_course(Settings(), ID, {})
    assert (chosen.prefix, chosen.scaler_policy, chosen.scaler_max_instances) == (ID, "depth", 15)
    assert chosen.web_auth == "classic"
    own = {"FACEAPP_SCALER_MAX_INSTANCES": "3", "FACEAPP_PREFIX": ID}
    kept = for_course(Settings.from_environ(own), ID, own)
    assert (kept.scaler_max_instances, kept.scaler_policy) == (3, "depth")
    with pytest.raises(ConfigError, match=r"name two prefixes"):
        for_course(Settings(prefix="mine"), ID, {"FACEAPP_PREFIX": "mine"})
    for wrong in ("", "123", f"{ID}0", "one2three4", "\u0661" * 10):
        with pytest.raises(ConfigError, match="ten digits"):
            for_course(Settings(), wrong, {})


@pytest.fixture(scope="module")
def facenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the right shapes, at random."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(vision.facenet_pytorch().InceptionResnetV1().state_dict(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Makes a course's data.pt of people with vectors that point elsewhere each."""

    def make(*names: str) -> Path:
        path = tmp_path / "data.pt"
        torch.save([[torch.eye(512)[n].reshape(1, 512) for n in range(len(names))], list(names)], path)
        return path

    return make


@pytest.mark.slow
def test_a_data_file_is_a_gallery_that_is_searched_listed_and_forgotten(
    stack: Settings, facenet: Path, data: Callable[..., Path]
) -> None:
    """G4: vectors without photos."""
    settings = replace(stack, embedder="facenet", weights=str(facenet), precision="fp32", device="cpu")
    for _ in range(2):
        assert import_data(settings, data("ann", "bob", "ann")) == (3, 2)
    storage = Storage(settings)
    gallery, people = Gallery(storage, model="facenet-vggface2", dimension=512), People(storage)
    gallery.refresh()
    for low in (False, True):
        match = gallery.search(np.eye(512, dtype=np.float32)[1], low_resolution=low, threshold=0.1)
        assert (match.name, match.distance) == ("bob", 0.0)
    assert [(each.name, each.photos) for each in people.list_people()] == [("ann", 2), ("bob", 1)]
    [vector_id] = people.find("bob")[1]
    with pytest.raises(NotFound):
        people.photo("bob", vector_id)
    people.forget("bob")
    people.forget_photo("ann", people.find("ann")[1][0])
    assert [(each.name, each.photos) for each in people.list_people()] == [("ann", 1)]


@pytest.mark.slow
def test_a_data_file_that_does_not_fit_is_refused(stack: Settings, facenet: Path, data: Callable[..., Path]) -> None:
    """G4: a sentence says what to set."""
    with pytest.raises(GalleryMismatch, match="FACEAPP_EMBEDDER=facenet and FACEAPP_WEIGHTS"):
        import_data(stack, data("ann"))
    settings = replace(stack, embedder="facenet", weights=str(facenet))
    with pytest.raises(InvalidName):
        import_data(settings, data("ann", "unknown"))
    assert People(Storage(stack)).list_people() == []


def test_vectors_of_two_models_do_not_come_together(stack: Settings) -> None:
    storage = Storage(stack)
    assert import_vectors(storage, [("ann", np.ones(128, np.float32))], model="dlib", max_photos=9) == 1
    with pytest.raises(GalleryMismatch, match="Another model than facenet described 1 "):
        import_vectors(storage, [("bob", np.ones(512, np.float32))], model="facenet", max_photos=9)
    assert import_vectors(storage, [], model="facenet", max_photos=9) == 0


def test_vectors_that_are_there_stay_as_they_are(stack: Settings) -> None:
    """Doing it twice is doing it once: S3 keeps the time since when they are enrolled."""
    storage, ann = Storage(stack), ("ann", np.ones(128, np.float32))

    def since() -> list[datetime]:
        return [each for _, _, each in storage.list_gallery_since(VECTORS)]

    def later() -> bool:
        storage.put_gallery("clock", b"")
        [(_, _, now)] = storage.list_gallery_since("clock")
        return now > first

    import_vectors(storage, [ann], model="dlib", max_photos=9)
    [first] = since()
    wait_until(later, what="another second")
    import_vectors(storage, [ann, ann], model="dlib", max_photos=9)
    assert since() == [first]


def test_vectors_beyond_what_the_gallery_may_hold_are_refused(stack: Settings) -> None:
    """S14: FACEAPP_GALLERY_MAX_PHOTOS holds for an import, and nothing of it is stored."""
    storage = Storage(stack)
    people = [(name, np.full(128, n, np.float32)) for n, name in enumerate(["ann", "bob", "eve"])]
    with pytest.raises(GalleryFull, match="may hold 2"):
        import_vectors(storage, people, model="dlib", max_photos=2)
    assert list(storage.list_gallery(VECTORS)) == []
    for _ in range(2):
        assert import_vectors(storage, people[:2], model="dlib", max_photos=2) == 2
