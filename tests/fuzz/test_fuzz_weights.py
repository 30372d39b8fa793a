"""Weights and galleries broken in every way: each is read, or refused by its reader's one error, and nothing runs."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from faceapp.people.formats import Snapshot, Vector, pack_snapshot, pack_vector
from faceapp.recognition.files import DLIB_RESNET, package_file
from tests.support.fuzzing import Broken, Edit, Judge, broken, cases, judge

# dlib's files.


def integer(value: int) -> bytes:
    """As dlib/serialize.h writes it."""
    size_bytes = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size_bytes | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size_bytes, "little")


def real(value: float) -> bytes:
    return integer(round(value * 1024)) + integer(-10)


@cache
def landmarks() -> dict[str, bytes]:
    """A file of two cascades, two trees each, that places five points: as the real one, but small."""
    rng = np.random.default_rng(1)
    cascades, trees, splits, pixels = 2, 2, 3, 6
    data = integer(1) + integer(-10) + integer(-1) + b"".join(real(each) for each in rng.random(10))
    data += integer(cascades)
    for _ in range(cascades):
        data += integer(trees)
        for _ in range(trees):
            data += integer(splits)
            for _ in range(splits):
                data += b"".join(integer(int(each)) for each in rng.integers(0, pixels, 2)) + real(rng.normal())
            data += integer(splits + 1)
            for _ in range(splits + 1):
                data += integer(-10) + integer(-1) + b"".join(real(each) for each in rng.normal(size=10) / 100)
    data += integer(cascades)
    for _ in range(cascades):
        data += integer(pixels) + b"".join(integer(int(each)) for each in rng.integers(0, 5, pixels))
    data += integer(cascades)
    for _ in range(cascades):
        data += integer(pixels) + b"".join(real(each) for each in rng.normal(size=2 * pixels) / 10)
    return {"landmarks": data}


@pytest.fixture(scope="module")
def read_landmarks() -> Iterator[Judge]:
    with judge("landmarks", landmarks().values()) as made:
        yield made


@pytest.mark.fuzz
@cases(300)
@given(each=st.deferred(lambda: broken(list(landmarks()))))
def test_broken_landmarks_are_read_or_refused(read_landmarks: Judge, each: Broken) -> None:
    assert read_landmarks(each.of(landmarks())) in {"read", "weights_unreadable"}


@cache
def network() -> tuple[bytes, list[int]]:
    """The real network, and the places in it that are not just numbers of a tensor."""
    data = package_file(*DLIB_RESNET).read_bytes()
    found = re.finditer(rb"con_4|affine_|fc_2|relu_|add_prev_|avg_pool_2|max_pool_2|loss_metric_2|input_rgb", data)
    return data, [each.start() for each in found]


@pytest.fixture(scope="module")
def read_network() -> Iterator[Judge]:
    with judge("network", [network()[0]]) as made:
        yield made


# Each case reads 22 MB.
@pytest.mark.fuzz
@cases(10, slow=200)
@given(place=st.integers(0, 10**6), off=st.integers(-60, 60), data=st.binary(min_size=1, max_size=9), cut=st.booleans())
def test_a_broken_network_is_read_or_refused(read_network: Judge, place: int, off: int, data: bytes, cut: bool) -> None:
    whole, places = network()
    at = max(0, places[place % len(places)] + off)
    changed = whole[:at] + data + (b"" if cut else whole[at + len(data) :])
    assert read_network(changed) in {"read", "weights_unreadable"}


# torch's files.


def saved(value: object, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


@cache
def courses() -> dict[str, bytes]:
    torch.manual_seed(2)
    people = [[torch.randn(1, 512), torch.randn(1, 512)], ["ada", "grace"]]
    return {
        "zip": saved(people),
        "old": saved(people, zipped=False),
        "halves": saved([[torch.randn(512).half()], ["ada"]]),
        "stacked": saved([torch.randn(2, 512, requires_grad=True), ("ada", "grace")]),
    }


@pytest.fixture(scope="module")
def read_course() -> Iterator[Judge]:
    with judge("course", courses().values()) as made:
        yield made


@pytest.mark.fuzz
@cases(300)
@example(each=Broken("zip", (Edit("flip", 0.0, data=b"\x01"),)))  # torch raises an IndexError
@given(each=st.deferred(lambda: broken(list(courses()))))
def test_a_broken_course_gallery_is_read_or_refused(read_course: Judge, each: Broken) -> None:
    assert read_course(each.of(courses())) in {"read", "weights_unreadable"}


def with_member(whole: bytes, change: Broken) -> bytes:
    """A zip file whose largest small member, the pickle, is broken, with all checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change.of({"pickle": data}) if name.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.fuzz
@cases(300)
@given(name=st.sampled_from(["zip", "halves", "stacked"]), each=broken(["pickle"]))
def test_a_broken_pickle_in_a_whole_file_is_read_or_refused(read_course: Judge, name: str, each: Broken) -> None:
    assert read_course(with_member(courses()[name], each)) in {"read", "weights_unreadable"}


# The gallery's.


@cache
def vectors() -> dict[str, bytes]:
    rng = np.random.default_rng(3)
    return {"vector": pack_vector(Vector(model="m", rows=rng.random((2, 16), np.float32)))}


@cache
def snapshots() -> dict[str, bytes]:
    rows = np.random.default_rng(4).random((2, 3, 16), np.float32)
    whole = pack_snapshot(Snapshot(model="m", keys=["a", "b", "c"], etags=["x", "y", "z"], rows=rows))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return {"snapshot": whole, "squeezed": out.getvalue()}


@pytest.fixture(scope="module")
def read_vector() -> Iterator[Judge]:
    with judge("vector", vectors().values()) as made:
        yield made


@pytest.fixture(scope="module")
def read_snapshot() -> Iterator[Judge]:
    with judge("snapshot", snapshots().values()) as made:
        yield made


@pytest.mark.fuzz
@cases(300)
@given(each=broken(["vector"]))
def test_a_broken_vector_is_read_or_refused(read_vector: Judge, each: Broken) -> None:
    assert read_vector(each.of(vectors())) in {"read", "refused"}


@pytest.mark.fuzz
@cases(300)
@example(each=Broken("squeezed", (Edit("flip", 0.0625, data=b"\x10"),)))  # a zlib.error
@given(each=broken(["snapshot", "squeezed"]))
def test_a_broken_snapshot_is_read_or_refused(read_snapshot: Judge, each: Broken) -> None:
    assert read_snapshot(each.of(snapshots())) in {"read", "refused"}


@pytest.mark.fuzz
@cases(200)
@example(member="rows.npy", name="snapshot", each=Broken("member", (Edit("cut", 0.0),)))  # bytes, no array
@given(
    member=st.sampled_from(["rows.npy", "keys.npy", "etags.npy", "format.npy", "model.npy"]),
    name=st.sampled_from(["snapshot", "squeezed"]),
    each=broken(["member"]),
)
def test_a_snapshot_with_a_broken_part_is_read_or_refused(
    read_snapshot: Judge, member: str, name: str, each: Broken
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(snapshots()[name])) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            data = old.read(part)
            new.writestr(part, each.of({"member": data}) if part == member else data)
    assert read_snapshot(out.getvalue()) in {"read", "refused"}
