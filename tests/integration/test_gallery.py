from __future__ import annotations

import base64
import itertools
import json
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from faceapp.broker import GivenUp
from faceapp.config import Settings
from faceapp.errors import GalleryFull, GalleryMismatch, InvalidName, NotFound, PersonNotFound, StorageUnavailable
from faceapp.people import Gallery, NewPhoto, People, Person
from faceapp.people.formats import Snapshot, Vector, pack_snapshot, pack_vector, unpack_snapshot, unpack_vector
from faceapp.people.journal import LENGTH, VERSION, note_change, note_enrolment, read_journal
from faceapp.people.people import PHOTOS, SNAPSHOT, VECTORS, path_of
from faceapp.people.table import Listed, Match, Table
from faceapp.schema import Enrolment
from faceapp.storage import Storage
from faceapp.work.given_up import Undertaker
from tests.support.aws import plain_client
from tests.support.services import wait_until

D = 8
THRESHOLD = 0.6


class Wire:
    """An S3 client that notes every call, and cuts the wire before the call numbered `cut` or runs `before` it."""

    def __init__(self, *, cut: int | None = None, before: Callable[[int, str, str], None] | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.cut, self.before = cut, before
        self._client = plain_client("s3", os.environ["AWS_ENDPOINT_URL"])
        self._lock = threading.Lock()

    def __getattr__(self, operation: str) -> Any:
        def call(**arguments: Any) -> Any:
            key = arguments.get("Key", arguments.get("Prefix", ""))
            with self._lock:
                n = len(self.calls)
                self.calls.append((operation, key))
            if self.cut is not None and n >= self.cut:
                raise EndpointConnectionError(endpoint_url="the wire is cut")
            if self.before:
                self.before(n, operation, key)
            return getattr(self._client, operation)(**arguments)

        return call


@pytest.fixture
def storage(stack: Settings, aws: str) -> Storage:
    return Storage(stack, client=plain_client("s3", aws))


def gallery_of(storage: Storage, *, model: str = "dlib", dimension: int = D, snapshot_above: int = 200) -> Gallery:
    return Gallery(storage, model=model, dimension=dimension, refresh_s=0, snapshot_above=snapshot_above)


def face(seed: int, *, size: int = D) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def new(photo: str, descriptor: Any, low: Any) -> NewPhoto:
    return NewPhoto(data=photo.encode(), descriptor=descriptor, low_descriptor=low)


def photo_of(name: str, seed: int) -> NewPhoto:
    return new(f"{name}'s photo {seed}", face(seed), face(seed) + 100)


def enrol(gallery: Gallery, name: str, *seeds: int, request_id: str = "") -> str:
    return gallery.enrol(name, [photo_of(name, seed) for seed in seeds], request_id=request_id)[0]


def names_found(gallery: Gallery, *seeds: int) -> list[str]:
    gallery.refresh()
    return [gallery.search(face(seed), threshold=THRESHOLD).name for seed in seeds]


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [key for key, _ in storage.list_gallery(prefix)]


# Enrolling, listing, forgetting


def test_who_is_enrolled_is_found_by_every_worker(storage: Storage) -> None:
    here, there = gallery_of(storage), gallery_of(storage)
    assert names_found(there, 1) == ["unknown"]

    enrol(here, "José Núñez", 1)
    enrol(here, "राहुल", 2)

    assert names_found(there, 1, 2, 3) == ["José Núñez", "राहुल", "unknown"]
    assert names_found(here, 1) == ["José Núñez"]
    assert here.version == there.version


def test_the_web_tier_lists_shows_and_forgets(storage: Storage) -> None:
    gallery, people = gallery_of(storage), People(storage)
    first, second = enrol(gallery, "amy", 1), enrol(gallery, "amy", 2)
    enrol(gallery, "amy-b", 3)
    enrol(gallery, "amy b", 4)

    assert people.list_people() == [
        Person(name="amy", photos=2),
        Person(name="amy b", photos=1),
        Person(name="amy-b", photos=1),
    ]
    assert sorted(people.find("amy")[1]) == sorted([first, second])
    assert people.photo("amy", first).data == b"amy's photo 1"

    people.forget_photo("amy", first)
    assert people.find("amy")[1] == [second]
    assert names_found(gallery, 1, 2) == ["unknown", "amy"]

    people.forget("amy")
    assert [person.name for person in people.list_people()] == ["amy b", "amy-b"]
    assert names_found(gallery, 1, 2, 3, 4) == ["unknown", "unknown", "amy-b", "amy b"]
    assert len(keys(storage, PHOTOS)) == 2


def test_what_the_web_tier_does_not_find(storage: Storage) -> None:
    people = People(storage)
    enrol(gallery_of(storage), "amy", 1)
    attempts: list[tuple[type[Exception], Callable[[], object]]] = [
        (PersonNotFound, lambda: people.find("bob")),
        (PersonNotFound, lambda: people.find("am")),
        (PersonNotFound, lambda: people.forget("am")),
        (NotFound, lambda: people.photo("amy", "0" * 24)),
        (NotFound, lambda: people.photo("amy", "../amy")),
        (NotFound, lambda: people.forget_photo("amy", "0" * 24)),
        (NotFound, lambda: people.forget_photo("amy", "")),
        (InvalidName, lambda: people.find("../amy")),
    ]
    for error, attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert people.list_people() == [Person(name="amy", photos=1)]


def test_a_name_like_the_one_that_nobody_has_is_suggested(storage: Storage) -> None:
    """R9: whoever asks for JOHN SMITH hears of John Smith."""
    enrol(gallery_of(storage), "John Smith", 1)
    enrol(gallery_of(storage), "amy", 1)
    attempts: list[Callable[[str], object]] = [People(storage).find, People(storage).forget]
    for attempt in attempts:
        with pytest.raises(PersonNotFound, match=r"Did you mean 'John Smith'\?"):
            attempt("JOHN SMITH")
        with pytest.raises(PersonNotFound, match=r"is enrolled\.$"):
            attempt("bob")


def test_a_photo_enrolled_twice_is_once(storage: Storage) -> None:
    gallery = gallery_of(storage)
    assert enrol(gallery, "amy", 1) == enrol(gallery, "amy", 1)
    gallery.refresh()
    version = gallery.version
    enrol(gallery, "amy", 1)
    gallery.refresh()

    assert len(gallery) == 1
    assert gallery.version == version


def test_the_web_tier_reads_no_vectors(storage: Storage, stack: Settings) -> None:
    photo_id = enrol(gallery_of(storage), "amy", 1)
    wire = Wire()
    people = People(Storage(stack, client=wire))
    people.list_people()
    people.find("amy")
    people.photo("amy", photo_id)
    people.forget("amy")

    assert [key for operation, key in wire.calls if operation == "get_object"] == [PHOTOS + path_of("amy", photo_id)]


# Cut off between any two calls


@pytest.mark.parametrize("cut", range(9))
def test_enrolling_again_heals_what_a_crash_left(storage: Storage, stack: Settings, cut: int) -> None:
    others = gallery_of(storage)
    others.refresh()
    wire = Wire(cut=cut)
    with pytest.raises(StorageUnavailable):
        enrol(gallery_of(Storage(stack, client=wire)), "amy", 1)
    assert len(keys(storage, VECTORS)) <= len(keys(storage, PHOTOS)), "a vector must not be there before its photo"

    enrol(gallery_of(storage), "amy", 1)

    assert names_found(others, 1) == ["amy"]
    assert len(keys(storage, PHOTOS)) == 1


def cut_once(storage: Storage, stack: Settings, calls: Callable[[Storage], object]) -> Iterator[tuple[str, str]]:
    """Run `calls` again and again, each time with the wire cut at the next of its calls alone, until none is cut."""
    for at in itertools.count():
        wire = Wire()

        def cut(n: int, operation: str, key: str, at: int = at) -> None:
            if n == at:
                raise EndpointConnectionError(endpoint_url="the wire is cut")

        wire.before = cut
        try:
            calls(Storage(stack, client=wire))
        except StorageUnavailable:
            yield wire.calls[at]
            storage.delete_gallery(keys(storage))
        else:
            return


def test_an_enrolment_that_fails_leaves_nothing_of_it(storage: Storage, stack: Settings) -> None:
    """C7: whichever call fails while several photos are stored, none of them is there, and what was there before is."""
    cuts = []

    def enrol_three(given: Storage) -> None:
        enrol(gallery_of(storage), "amy", 1)
        enrol(gallery_of(given), "amy", 1, 2, 3)

    for cut in cut_once(storage, stack, enrol_three):
        cuts.append(cut)
        assert names_found(gallery_of(storage), 1, 2, 3) == ["amy", "unknown", "unknown"], cut
        assert (len(keys(storage, VECTORS)), len(keys(storage, PHOTOS))) == (1, 1), cut

    assert len([key for operation, key in cuts if operation == "put_object" and key.startswith(VECTORS)]) == 3
    assert names_found(gallery_of(storage), 1, 2, 3) == ["amy"] * 3


@pytest.mark.parametrize("cut", range(18))
def test_enrolling_several_again_completes_what_a_killed_worker_left(
    storage: Storage, stack: Settings, cut: int
) -> None:
    """C7: from one call on nothing goes out any more, as when the process is killed; the next delivery completes it."""
    with suppress(StorageUnavailable):
        enrol(gallery_of(Storage(stack, client=Wire(cut=cut))), "amy", 1, 2, 3)

    enrol(gallery_of(storage), "amy", 1, 2, 3)

    assert names_found(gallery_of(storage), 1, 2, 3) == ["amy"] * 3
    assert (len(keys(storage, VECTORS)), len(keys(storage, PHOTOS))) == (3, 3)


@pytest.mark.parametrize("cut", range(18))
def test_an_enrolment_that_is_given_up_is_taken_back_or_was_done(storage: Storage, stack: Settings, cut: int) -> None:
    """C6, C7: three killed workers later the answer is what the gallery has: all of the photos, or none of them."""
    enrol(gallery_of(storage), "amy", 1)
    request_id = uuid.uuid4().hex
    for n in range(3):
        data = photo_of("amy", n + 1).data
        storage.put_incoming(request_id, n, data, name="amy", file_name=f"{n}.jpg")
    with suppress(StorageUnavailable):
        enrol(gallery_of(Storage(stack, client=Wire(cut=cut))), "amy", 1, 2, 3, request_id=request_id)

    told = Undertaker(stack).give_up(
        GivenUp(task="faceapp.enrol", task_id=request_id, arguments=(request_id,), error="WorkerLostError")
    )

    assert isinstance(told, Enrolment)
    enrolled = told.failures == ()
    assert len(told.photos) == (3 if enrolled else 0)
    assert storage.list_incoming(request_id) == ([] if enrolled else [0, 1, 2])
    assert len(keys(storage, VECTORS)) == len(keys(storage, PHOTOS)) == (3 if enrolled else 1)
    expected = ["amy", "amy" if enrolled else "unknown", "amy" if enrolled else "unknown"]
    assert names_found(gallery_of(storage), 1, 2, 3) == expected


@pytest.mark.parametrize("cut", range(1, 6))
def test_forgetting_again_finishes_what_a_crash_left(storage: Storage, stack: Settings, cut: int) -> None:
    gallery = gallery_of(storage, snapshot_above=0)
    enrol(gallery, "amy", 1)
    enrol(gallery, "bob", 2)
    assert names_found(gallery, 1, 2) == ["amy", "bob"]
    people = People(Storage(stack, client=Wire(cut=cut)))
    with pytest.raises(StorageUnavailable):
        people.forget("amy")

    People(storage).forget("amy")

    assert names_found(gallery, 1, 2) == ["unknown", "bob"]
    assert not [key for key in keys(storage) if "amy" in key]
    with pytest.raises(PersonNotFound):
        People(storage).forget("amy")


@pytest.mark.parametrize("at", range(9))
def test_forgetting_at_any_moment_of_enrolling_leaves_all_or_nothing(
    storage: Storage, stack: Settings, at: int
) -> None:
    def forget(n: int, operation: str, key: str) -> None:
        if n == at:
            forget_if_there(storage, "amy")

    gallery = gallery_of(Storage(stack, client=Wire(before=forget)))
    enrol(gallery, "amy", 1)

    photos, vectors = keys(storage, PHOTOS), keys(storage, VECTORS)
    assert [key.removeprefix(PHOTOS) for key in photos] == [key.removeprefix(VECTORS) for key in vectors]
    assert names_found(gallery_of(storage), 1) == (["amy"] if vectors else ["unknown"])


@pytest.mark.parametrize("at", range(1, 7))
def test_enrolling_at_any_moment_of_forgetting_leaves_all_or_nothing(
    storage: Storage, stack: Settings, at: int
) -> None:
    enrol(gallery_of(storage), "amy", 1)

    def enrol_another(n: int, operation: str, key: str) -> None:
        if n == at:
            enrol(gallery_of(storage), "amy", 2)

    People(Storage(stack, client=Wire(before=enrol_another))).forget("amy")

    photos, vectors = keys(storage, PHOTOS), keys(storage, VECTORS)
    assert [key.removeprefix(PHOTOS) for key in photos] == [key.removeprefix(VECTORS) for key in vectors]
    assert names_found(gallery_of(storage), 1) == ["unknown"]


def forget_if_there(storage: Storage, name: str) -> None:
    with suppress(PersonNotFound):
        People(storage).forget(name)


# Who is like whom


def test_who_was_enrolled_first_keeps_the_answer(storage: Storage) -> None:
    """S11: the same face under a second name, which comes first by the alphabet, takes no answer away."""
    here, there = gallery_of(storage), gallery_of(storage)
    enrol(here, "zoe", 1)
    there.refresh()
    stored_s = next(since.timestamp() for _, _, since in storage.list_gallery_since(VECTORS))
    # S3 tells whole seconds.
    wait_until(lambda: time.time() > stored_s + 1, what="the next second")
    here.enrol("amy", [new("zoe's face", face(1), face(1) + 100)])
    assert names_found(here, 1) == names_found(there, 1) == names_found(gallery_of(storage), 1) == ["zoe"]

    enrol(here, "zoe", 1)  # again: that makes it no later
    assert names_found(here, 1) == names_found(there, 1) == names_found(gallery_of(storage), 1) == ["zoe"]


def test_a_photo_that_is_described_anew_replaces_what_was_there(storage: Storage) -> None:
    """S11: a photo that is enrolled again stays as it is, unless a better look at it says something else."""
    gallery = gallery_of(storage)
    gallery.enrol("amy", [new("photo", face(1), face(1))])
    before = dict(storage.list_gallery(VECTORS))
    gallery.enrol("amy", [new("photo", face(1) + 0.01, face(1))])
    assert dict(storage.list_gallery(VECTORS)) == before

    gallery.enrol("amy", [new("photo", face(2), face(2))])
    assert names_found(gallery_of(storage), 1, 2) == ["unknown", "amy"]


def test_a_worker_that_starts_from_the_snapshot_knows_who_was_first(storage: Storage) -> None:
    """S11: also with the vectors out of one object, which holds no times."""
    gallery = gallery_of(storage, snapshot_above=1)
    enrol(gallery, "zoe", 1)
    stored_s = next(since.timestamp() for _, _, since in storage.list_gallery_since(VECTORS))
    wait_until(lambda: time.time() > stored_s + 1, what="the next second")
    gallery.enrol("amy", [new("zoe's face", face(1), face(1) + 100)])
    gallery.refresh()
    assert SNAPSHOT in keys(storage)

    assert names_found(gallery_of(storage, snapshot_above=1), 1) == ["zoe"]


def test_of_equals_the_earliest_photo_counts() -> None:
    """S11: for each person it is the photo that is nearest which counts, not when they were first enrolled."""
    rows = np.stack([face(1), face(2), face(1), face(1)])
    table_keys = [VECTORS + path_of(name, f"{n:024x}") for n, name in enumerate(["amy", "bob", "bob", "zoe"])]
    table = Table(table_keys, ["etag"] * 4, np.stack([rows, rows]), np.array([30.0, 10.0, 40.0, 20.0]))

    [match] = table.search(face(1)[None], low_resolution=False, threshold=THRESHOLD, candidates=3)

    assert match.name == "zoe"
    assert [each.name for each in match.candidates] == ["zoe", "amy", "bob"]


def notices_of(gallery: Gallery, name: str, *photos: NewPhoto) -> list[tuple[str, str]]:
    return [(each.code, each.name) for each in gallery.notices(name, photos, threshold=THRESHOLD)]


def test_an_enrolment_tells_of_names_that_are_like_it(storage: Storage) -> None:
    """R9: John Smith and JOHN SMITH are two people, and whoever enrols the second is told; two spaces are one."""
    gallery = gallery_of(storage)
    enrol(gallery, "John Smith", 1)
    enrol(gallery, "Amy", 2)

    assert notices_of(gallery, "JOHN SMITH", photo_of("J", 3)) == [("similar_name", "John Smith")]
    assert notices_of(gallery, "John  Smith", photo_of("J", 1)) == []
    assert enrol(gallery, "John  Smith", 3)
    assert [each.name for each in People(storage).list_people()] == ["Amy", "John Smith"]


def test_an_enrolment_tells_of_the_same_photo_under_another_name(storage: Storage) -> None:
    """R9: by the photo's bytes though it is described anew, and by the same descriptor though the bytes differ."""
    gallery = gallery_of(storage)
    enrol(gallery, "amy", 1)
    same_bytes = new("amy's photo 1", face(1) + 1e-3, face(1))
    same_face = new("another file", face(1), face(1))

    assert notices_of(gallery, "bob", same_bytes) == [("same_photo", "amy")]
    assert notices_of(gallery, "bob", same_face) == [("same_photo", "amy")]
    assert notices_of(gallery, "amy", same_bytes) == []


def test_one_photo_under_many_names_is_told_of_briefly(storage: Storage) -> None:
    """R9: the answer stays short however many people have the photo."""
    gallery = gallery_of(storage)
    for n in range(8):
        gallery.enrol(f"p{n}", [new("the photo", face(1), face(1))])

    assert [code for code, _ in notices_of(gallery, "p9", new("the photo", face(1), face(1)))] == ["same_photo"] * 5


def test_an_enrolment_tells_who_looks_like_it(storage: Storage) -> None:
    """S11: a stranger within the threshold, and one nearer than the person's own photos."""
    gallery = gallery_of(storage)
    enrol(gallery, "amy", 1)
    near, far = face(1) + 0.1, face(1) + 1.0  # at 0.28 and 2.8
    assert notices_of(gallery, "bob", new("near", near, near)) == [("looks_like", "amy")]
    assert notices_of(gallery, "bob", new("far", far, far)) == []

    enrol(gallery, "bob", 50)
    assert notices_of(gallery, "bob", new("far", far, far)) == [("looks_like", "amy"), ("unlike", "bob")]
    notice, *_ = gallery.notices("bob", [new("far", far, far), new("near", near, near)], threshold=THRESHOLD)
    assert notice.distance == pytest.approx(0.1 * D**0.5, rel=1e-5)
    assert notice.photo == new("near", near, near).id
    assert "amy" in notice.detail


def test_an_enrolment_tells_of_a_photo_that_is_unlike_the_persons_others(storage: Storage) -> None:
    """Somebody else's photo under a name that is there already got no word. One that is hard to tell gets none."""
    gallery = gallery_of(storage)
    enrol(gallery, "amy", 1)

    def away(distance: float) -> NewPhoto:
        moved = face(1) + distance / D**0.5
        return new(f"at {distance}", moved, moved)

    for like in (0.0, 0.5, 0.7):
        assert notices_of(gallery, "amy", away(like)) == []
    other = away(2.0)
    [notice] = gallery.notices("amy", [away(0.3), other], threshold=THRESHOLD)
    assert (notice.code, notice.name, notice.photo) == ("unlike", "amy", other.id)
    assert notice.distance == pytest.approx(1.7, rel=1e-3)  # to the nearest: another new one
    assert notice.detail == (
        "This photo does not look like the other photos of 'amy' (distance 1.70). Is it the same person?"
    )
    # Two people in one enrolment under a new name; and again, where each is among its own photos.
    pair = [photo_of("bob", 3), photo_of("bob", 4)]
    assert notices_of(gallery, "bob", *pair) == [("unlike", "bob"), ("unlike", "bob")]
    gallery.enrol("bob", pair)
    assert notices_of(gallery, "bob", pair[0]) == []
    assert len(notices_of(gallery, "cy", *(photo_of("cy", n) for n in range(10, 20)))) == 5


# A limit of size


def test_a_full_gallery_takes_no_more(storage: Storage, stack: Settings) -> None:
    """S14: nothing more than the limit, whole enrolments only, and what is there can be enrolled again."""
    wire = Wire()
    gallery = Gallery(Storage(stack, client=wire), model="dlib", dimension=D, refresh_s=0, max_photos=3)
    enrol(gallery, "amy", 1, 2)
    gallery.refresh()
    wire.calls.clear()
    with pytest.raises(GalleryFull, match=r"holds 2 photos and may hold 3: .* FACEAPP_GALLERY_MAX_PHOTOS"):
        enrol(gallery, "bob", 3, 4)
    assert ("list_objects_v2", VECTORS) not in wire.calls
    assert len(keys(storage, PHOTOS)) == 2

    enrol(gallery, "bob", 3)
    enrol(gallery, "amy", 1)
    with pytest.raises(GalleryFull):
        enrol(gallery, "zoe", 4)
    People(storage).forget_photo("amy", photo_of("amy", 2).id)
    enrol(gallery, "zoe", 4)


# Keeping up


def test_a_refresh_without_change_is_one_call(storage: Storage, stack: Settings) -> None:
    enrol(gallery_of(storage), "amy", 1)
    wire = Wire()
    gallery = gallery_of(Storage(stack, client=wire))
    gallery.refresh()
    wire.calls.clear()
    for _ in range(3):
        gallery.refresh()

    assert wire.calls == [("head_object", VERSION)] * 3


def test_the_bucket_is_not_asked_more_often_than_wanted(storage: Storage, stack: Settings) -> None:
    wire = Wire()
    gallery = Gallery(Storage(stack, client=wire), model="dlib", dimension=D, refresh_s=3600)
    gallery.refresh()
    asked = len(wire.calls)
    enrol(gallery_of(storage), "amy", 1)
    gallery.refresh()

    assert len(wire.calls) == asked


def test_only_what_changed_is_fetched(storage: Storage, stack: Settings) -> None:
    writer = gallery_of(storage)
    for seed in range(5):
        enrol(writer, f"p{seed}", seed)
    wire = Wire()
    reader = gallery_of(Storage(stack, client=wire))
    reader.refresh()
    wire.calls.clear()
    enrol(writer, "zoe", 9)
    People(storage).forget("p0")
    names = names_found(reader, 0, 1, 9)

    assert names == ["unknown", "p1", "zoe"]
    assert len([key for operation, key in wire.calls if operation == "get_object" and key.startswith(VECTORS)]) == 1


def test_after_an_enrolment_only_that_person_is_listed(storage: Storage, stack: Settings) -> None:
    writer = gallery_of(storage)
    for name in ("amy", "bob", "zoe"):
        enrol(writer, name, ord(name[0]))
    wire = Wire()
    reader = gallery_of(Storage(stack, client=wire))
    reader.refresh()
    wire.calls.clear()
    enrol(writer, "bob", 1)
    enrol(writer, "eve", 2)

    assert names_found(reader, 1, 2, ord("a"), ord("b")) == ["bob", "eve", "amy", "bob"]
    listed = [key for operation, key in wire.calls if operation == "list_objects_v2"]
    assert listed == ["vectors/bob/", "vectors/eve/"]
    writer.refresh()
    assert reader.version == writer.version


def test_a_worker_that_missed_the_journals_beginning_lists_everything(storage: Storage) -> None:
    writer, reader = gallery_of(storage), gallery_of(storage)
    reader.refresh()
    enrol(writer, "amy", 1)
    for _ in range(LENGTH + 1):
        note_enrolment(storage, "bob")

    assert len(read_journal(storage).entries) == LENGTH
    assert names_found(reader, 1) == ["amy"]


def test_nobody_writes_over_anothers_entry(storage: Storage, stack: Settings) -> None:
    note_change(storage)
    entry = read_journal(storage).last

    def enrol_too(n: int, operation: str, key: str) -> None:
        if n == 1:
            note_enrolment(storage, "amy")

    note_enrolment(Storage(stack, client=Wire(before=enrol_too)), "bob")

    assert read_journal(storage).names_since(entry) == {"amy", "bob"}


def test_writers_who_never_get_their_turn_make_everybody_look(storage: Storage, stack: Settings) -> None:
    note_change(storage)
    entry = read_journal(storage).last

    def enrol_too(n: int, operation: str, key: str) -> None:
        if operation == "put_object":
            note_enrolment(storage, "amy")

    note_enrolment(Storage(stack, client=Wire(before=enrol_too)), "bob")

    assert read_journal(storage).names_since(entry) is None


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"[1]", b"7", b'[["a"]]', b"null"])
def test_a_broken_journal_makes_everybody_look(storage: Storage, data: bytes) -> None:
    reader = gallery_of(storage)
    enrol(reader, "amy", 1)
    reader.refresh()
    storage.put_gallery(VERSION, data)
    enrol(gallery_of(storage), "bob", 2)

    assert names_found(reader, 1, 2) == ["amy", "bob"]


def test_a_change_that_nobody_announced_is_seen_at_the_next_listing(storage: Storage) -> None:
    slow = gallery_of(storage)
    relisting = Gallery(storage, model="dlib", dimension=D, refresh_s=0, relist_s=0)
    assert names_found(slow, 1) == names_found(relisting, 1) == ["unknown"]
    vector = pack_vector(Vector(model="dlib", rows=np.stack([face(1), face(1)])))
    storage.put_gallery(VECTORS + path_of("amy", "a" * 24), vector)

    assert names_found(slow, 1) == ["unknown"]
    assert names_found(relisting, 1) == ["amy"]


def test_s3_that_fails_leaves_the_vectors_as_they_are(
    storage: Storage, stack: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    enrol(gallery_of(storage), "amy", 1)
    wire = Wire()
    gallery = gallery_of(Storage(stack, client=wire))
    assert names_found(gallery, 1) == ["amy"]
    enrol(gallery_of(storage), "bob", 2)

    wire.cut = 0
    assert names_found(gallery, 1, 2) == ["amy", "unknown"]
    assert "the gallery stays at version" in caplog.text

    wire.cut = None
    assert names_found(gallery, 1, 2) == ["amy", "bob"]


def test_a_gallery_that_was_never_loaded_says_so_each_time(storage: Storage, stack: Settings) -> None:
    wire = Wire(cut=0)
    gallery = Gallery(Storage(stack, client=wire), model="dlib", dimension=D, refresh_s=3600)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            gallery.refresh()


BROKEN = [
    b"",
    b"\xff\xfe",
    b"{}",
    b"[]",
    b"[" * 100_000,
    json.dumps({"version": 2, "model": "dlib", "dimension": D, "descriptors": ""}).encode(),
    json.dumps({"version": 1, "model": "dlib", "dimension": D, "descriptors": "!"}).encode(),
    json.dumps({"version": 1, "model": "dlib", "dimension": D + 1, "descriptors": "AAAA" * 16}).encode(),
    json.dumps({"version": 1, "model": "dlib", "dimension": "x", "descriptors": "AAAA"}).encode(),
    json.dumps(
        {"version": 1, "model": "dlib", "dimension": 2, "descriptors": base64.b64encode(b"\xff" * 16).decode()}
    ).encode(),
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_vector_is_skipped_until_it_is_written_anew(
    storage: Storage, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = gallery_of(storage)
    photo_id = enrol(gallery, "amy", 1)
    enrol(gallery, "bob", 2)
    storage.put_gallery(VECTORS + path_of("amy", photo_id), data)
    reader = gallery_of(storage)

    assert names_found(reader, 1, 2) == ["unknown", "bob"]
    assert f"the photo {photo_id} is skipped" in caplog.text
    assert "amy" not in caplog.text

    enrol(gallery, "amy", 1)
    assert names_found(reader, 1) == ["amy"]


def test_keys_of_another_shape_are_not_looked_at(storage: Storage) -> None:
    for key in ("vectors/", "vectors/amy", "vectors/amy/short", "vectors/a/b/" + "a" * 24):
        storage.put_gallery(key, b"?")
    gallery = gallery_of(storage)
    gallery.refresh()

    assert len(gallery) == 0
    assert People(storage).list_people() == []


# Another model


def test_another_models_vectors_are_skipped_and_not_mixed(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    old = gallery_of(storage, model="dlib")
    enrol(old, "amy", 1)
    enrol(old, "bob", 2)
    newer = gallery_of(storage, model="facenet", dimension=2 * D)
    wide = face(3, size=2 * D)
    newer.refresh()
    newer.refresh()

    assert newer.search(wide, threshold=100).name == "unknown"
    assert [record.getMessage() for record in caplog.records if "another model" in record.getMessage()] == [
        "2 photos are skipped: another model than facenet described them"
    ]
    with pytest.raises(GalleryMismatch, match="2 of the gallery's photos"):
        newer.enrol("zoe", [new("zoe's photo", wide, wide)])

    for name, seed in (("amy", 1), ("bob", 2)):
        newer.enrol(name, [new(f"{name}'s photo {seed}", wide + seed, wide)])
    newer.enrol("zoe", [new("zoe's photo", wide, wide)])
    newer.refresh()
    assert newer.search(wide, threshold=THRESHOLD).name == "zoe"
    assert len(newer) == 3


@pytest.mark.parametrize("descriptor", [face(1)[:-1], np.zeros((1, D)), np.full(D, np.nan), np.full(D, np.inf), 1.0])
def test_a_descriptor_that_does_not_fit_is_refused(storage: Storage, descriptor: Any) -> None:
    gallery = gallery_of(storage)
    with pytest.raises((GalleryMismatch, ValueError)):
        gallery.enrol("amy", [new("photo", descriptor, face(1))])
    with pytest.raises(GalleryMismatch):
        gallery.search(descriptor, threshold=THRESHOLD)
    assert keys(storage) == []


# The snapshot


def test_a_worker_starts_from_the_snapshot(storage: Storage, stack: Settings) -> None:
    writer = gallery_of(storage, snapshot_above=2)
    for seed in range(5):
        enrol(writer, f"p{seed}", seed)
    writer.refresh()
    wire = Wire()
    reader = gallery_of(Storage(stack, client=wire), snapshot_above=2)
    reader.refresh()
    fetched = [key for operation, key in wire.calls if operation == "get_object"]

    assert SNAPSHOT in fetched
    assert len(fetched) < 5
    assert reader.version == writer.version
    assert names_found(reader, 0, 4) == ["p0", "p4"]


def test_a_small_gallery_has_no_snapshot(storage: Storage) -> None:
    gallery = gallery_of(storage, snapshot_above=2)
    for seed in range(2):
        enrol(gallery, f"p{seed}", seed)
    gallery.refresh()

    assert SNAPSHOT not in keys(storage)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY", b"x" * 1000, b"\x80\x04N."])
def test_a_broken_snapshot_is_replaced(storage: Storage, data: bytes) -> None:
    gallery = gallery_of(storage, snapshot_above=1)
    for seed in range(3):
        enrol(gallery, f"p{seed}", seed)
    gallery.refresh()
    storage.put_gallery(SNAPSHOT, data)
    reader = gallery_of(storage, snapshot_above=1)

    assert names_found(reader, 0, 2) == ["p0", "p2"]
    found = storage.get_gallery(SNAPSHOT)
    assert found is not None
    assert len(unpack_snapshot(found.data).keys) == 3


def test_a_snapshot_cut_anywhere_is_refused_as_a_value() -> None:
    rows = np.ones((2, 3, D), dtype=np.float32)
    data = pack_snapshot(Snapshot(model="dlib", keys=["a", "b", "c"], etags=["1", "2", "3"], rows=rows))
    for end in range(0, len(data), 97):
        with pytest.raises(ValueError, match=r"."):
            unpack_snapshot(data[:end])


def test_who_is_forgotten_is_in_no_object(storage: Storage) -> None:
    gallery = gallery_of(storage, snapshot_above=1)
    for seed in range(3):
        enrol(gallery, f"p{seed}", seed)
    gallery.refresh()
    People(storage).forget("p1")
    assert not contents_with(storage, face(1))

    gallery.refresh()  # it holds the rest, and writes the snapshot anew
    assert SNAPSHOT in keys(storage)
    assert contents_with(storage, face(0))
    assert not contents_with(storage, face(1))


@pytest.mark.parametrize("moment", ["", "version", "vectors/", "snapshot", "vectors/p1", "vectors/p3"])
@pytest.mark.parametrize("occurrence", [0, 1])
def test_a_snapshot_written_while_somebody_is_forgotten_does_not_outlive_them(
    storage: Storage, stack: Settings, moment: str, occurrence: int
) -> None:
    writer = gallery_of(storage)
    for seed in range(4):
        enrol(writer, f"p{seed}", seed)
    left = [occurrence]

    def forget(n: int, operation: str, key: str) -> None:
        if key.startswith(moment):
            left[0] -= 1
            if left[0] == -1:
                forget_if_there(storage, "p1")

    gallery_of(Storage(stack, client=Wire(before=forget)), snapshot_above=1).refresh()
    if left[0] >= 0:
        forget_if_there(storage, "p1")

    assert not contents_with(storage, face(1))


def test_a_snapshot_left_by_a_worker_that_was_killed_is_removed(storage: Storage) -> None:
    gallery = gallery_of(storage, snapshot_above=1)
    for seed in range(3):
        enrol(gallery, f"p{seed}", seed)
    gallery.refresh()
    left = storage.get_gallery(SNAPSHOT)
    assert left is not None
    People(storage).forget("p1")
    storage.put_gallery(SNAPSHOT, left.data)
    assert contents_with(storage, face(1))

    gallery_of(storage).refresh()

    assert not contents_with(storage, face(1))


def contents_with(storage: Storage, descriptor: NDArray[np.float32]) -> list[str]:
    """The objects in the gallery bucket that hold this descriptor, as numbers or within JSON."""
    raw, found = descriptor.astype("<f4").tobytes(), []
    for key in keys(storage):
        content = storage.get_gallery(key)
        assert content is not None
        data = content.data
        if key.startswith(VECTORS):
            data = unpack_vector(data).rows.tobytes()
        if raw in data:
            found.append(key)
    return found


# Threads and forks


def test_threads_search_while_others_enrol(storage: Storage) -> None:
    gallery = gallery_of(storage)
    enrol(gallery, "amy", 0)
    gallery.refresh()
    done, wrong = threading.Event(), []

    def search() -> None:
        while not done.is_set():
            gallery.refresh()
            match = gallery.search(face(0), threshold=THRESHOLD)
            if match.name != "amy":
                wrong.append(match)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(1, 6):
        enrol(gallery, f"p{seed}", seed)
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert names_found(gallery, *range(6)) == ["amy", "p1", "p2", "p3", "p4", "p5"]


class Stuck(Storage):
    """Waits in the parent process at every question for the version, until told to go on."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.parent, self.there, self.go_on = os.getpid(), threading.Event(), threading.Event()

    def gallery_etag(self, key: str) -> str | None:
        if os.getpid() == self.parent:
            self.there.set()
            self.go_on.wait(240)
        return super().gallery_etag(key)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_refresh_is_not_stuck(storage: Storage, stack: Settings) -> None:
    enrol(gallery_of(storage), "amy", 1)
    stuck = Stuck(stack)
    gallery = gallery_of(stuck)
    thread = threading.Thread(target=gallery.refresh)
    thread.start()
    assert stuck.there.wait(240)

    def child(pipe: Connection) -> None:
        pipe.send(names_found(gallery, 1))

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(sender,))
    process.start()
    try:
        assert receiver.poll(60), "the child waits for a lock that nobody holds there"
        assert receiver.recv() == ["amy"]
    finally:
        process.kill()
        process.join()
        stuck.go_on.set()
        thread.join()


# Search


def brute_force(table: Table, probe: NDArray[np.float32], kind: int) -> list[tuple[float, str]]:
    """Every person's distance in float64, nearest first."""
    nearest: dict[str, float] = {}
    for key, row in zip(table.keys, table.rows[kind].astype(np.float64), strict=True):
        name = key.split("/")[1]
        nearest[name] = min(nearest.get(name, np.inf), float(np.sqrt(((row - probe) ** 2).sum())))
    return sorted((distance, name) for name, distance in nearest.items())


def table_of(rows: NDArray[np.float32], people: int) -> Table:
    table_keys = sorted(VECTORS + path_of(f"p{i % people}", f"{i:024x}") for i in range(rows.shape[1]))
    return Table(table_keys, ["etag"] * len(table_keys), rows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 60),
    people=st.integers(1, 20),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
    spread=st.sampled_from([1.0, 1e-3, 1e-6]),
    candidates=st.integers(0, 7),
    low_resolution=st.booleans(),
)
def test_the_search_is_exact_also_where_float32_is_not(
    seed: int, size: int, people: int, offset: float, spread: float, candidates: int, low_resolution: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = (offset + spread * rng.normal(size=(2, size, D))).astype(np.float32)
    probes = (offset + spread * rng.normal(size=(3, D))).astype(np.float32)
    table = table_of(rows, people)
    matches = table.search(probes, low_resolution=low_resolution, threshold=np.inf, candidates=candidates)
    for probe, match in zip(probes, matches, strict=True):
        wanted = brute_force(table, probe, int(low_resolution))
        assert match.distance == pytest.approx(wanted[0][0], rel=1e-12)
        assert match.name == wanted[0][1]
        assert [each.name for each in match.candidates] == [name for _, name in wanted[:candidates]]
        assert [each.distance for each in match.candidates] == pytest.approx([far for far, _ in wanted[:candidates]])


def test_the_threshold_itself_is_near_enough() -> None:
    rows = np.zeros((2, 1, D), dtype=np.float32)
    table, probe = table_of(rows, 1), np.full((1, D), 0.5, dtype=np.float32)
    distance = float(np.sqrt(D * 0.25))

    def name(threshold: float) -> str:
        return table.search(probe, low_resolution=False, threshold=threshold, candidates=1)[0].name

    assert name(distance) == "p0"
    assert name(np.nextafter(distance, 0)) == "unknown"


def test_a_stranger_still_has_candidates() -> None:
    table = table_of(np.stack([[face(i) for i in range(4)]] * 2), 4)
    match = table.search(face(9)[None], low_resolution=False, threshold=0.01, candidates=2)[0]

    assert match.name == "unknown"
    assert match.distance == match.candidates[0].distance
    assert len(match.candidates) == 2


def test_faces_of_one_photo_are_searched_together_each_at_its_resolution(storage: Storage) -> None:
    gallery = gallery_of(storage)
    enrol(gallery, "amy", 1)
    enrol(gallery, "bob", 2)
    gallery.refresh()
    probes = [face(1), face(2) + 100, face(1) + 100, face(2)]
    matches = gallery.search_many(probes, low_resolution=[False, True, False, False], threshold=0.01)

    assert [match.name for match in matches] == ["amy", "bob", "unknown", "bob"]
    assert gallery.search(face(2) + 100, low_resolution=True, threshold=0.01) == matches[1]
    assert gallery.search_many([], low_resolution=[], threshold=0.01) == []


def test_an_empty_gallery_knows_nobody(storage: Storage) -> None:
    gallery = gallery_of(storage)
    gallery.refresh()
    assert gallery.search(face(1), threshold=100) == Match(name="unknown", distance=None, candidates=())


def test_a_table_is_updated_like_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    table, model = Table.empty(D), dict[str, tuple[str, float]]()
    since_s: dict[str, float] = {}
    every_key = [VECTORS + path_of(f"p{i % 5}", f"{i:024x}") for i in range(30)]
    for step in range(40):
        listed = {key: model.get(key, ("", 0))[0] or str(step) for key in every_key if rng.random() < 0.6}
        changed = {key for key in listed if key not in model or rng.random() < 0.2}
        listed.update({key: str(step) for key in changed})
        fetched = {key: (listed[key], np.full((2, D), step, np.float32)) for key in changed}
        model = {key: (etag, float(step) if key in changed else model[key][1]) for key, etag in listed.items()}
        since_s = {key: float(step) if key in changed else since_s[key] for key in listed}
        table = table.updated({key: Listed(etag, since_s[key]) for key, etag in listed.items()}, fetched)

        assert list(table.keys) == sorted(model)
        assert list(table.etags) == [model[key][0] for key in sorted(model)]
        assert table.rows[1, :, -1].tolist() == [model[key][1] for key in sorted(model)]
        assert table.since_s.tolist() == [since_s[key] for key in sorted(model)]
        assert all(key in table for key in model)
        assert not any(key in table for key in set(every_key) - set(model))
