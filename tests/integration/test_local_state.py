"""The gallery that survives a restart of the embedded AWS."""

from __future__ import annotations

import json
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faceapp.errors import LocalError
from faceapp.local.state import GalleryState, default_folder, lock
from tests.support.aws import plain_client
from tests.support.services import wait_until


class Bucket:
    """A gallery bucket and what a start makes of it."""

    def __init__(self, s3: Any) -> None:
        self.s3, self.name = s3, f"t{uuid.uuid4().hex[:12]}"
        s3.create_bucket(Bucket=self.name)

    def put(self, **objects: bytes) -> None:
        """Write objects, `__` standing for a slash, and then a new version."""
        for key, content in objects.items():
            self.s3.put_object(Bucket=self.name, Key=key.replace("__", "/"), Body=content)
        self.s3.put_object(Bucket=self.name, Key="version", Body=uuid.uuid4().bytes)

    def contents(self) -> dict[str, bytes]:
        found = self.s3.list_objects_v2(Bucket=self.name).get("Contents", ())
        return {
            each["Key"]: self.s3.get_object(Bucket=self.name, Key=each["Key"])["Body"].read()
            for each in found
            if each["Key"] != "version"
        }

    def state(self, folder: Path) -> GalleryState:
        return GalleryState(self.s3, self.name, folder)


@pytest.fixture
def s3(aws: str) -> Any:
    return plain_client("s3", aws)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder; whatever a test did, no half-written file is left in it."""
    yield tmp_path / "gallery"
    assert not list(tmp_path.glob("gallery/*.part"))


def test_people_come_back_and_waiting_photos_do_not(s3: Any, folder: Path) -> None:
    before, after = Bucket(s3), Bucket(s3)
    before.put(photos__ann__1=b"photo", vectors__ann__1=b"vector", incoming__7__0=b"waiting", scaler__lease=b"x")
    before.state(folder).save()
    assert after.state(folder).restore() == 3
    assert after.contents() == {"photos/ann/1": b"photo", "vectors/ann/1": b"vector"}


def test_who_is_forgotten_leaves_no_file(s3: Any, folder: Path) -> None:
    bucket = Bucket(s3)
    bucket.put(photos__ann__1=b"ann", photos__bob__1=b"bob")
    state = bucket.state(folder)
    state.save()
    s3.delete_object(Bucket=bucket.name, Key="photos/ann/1")
    bucket.put()
    state.save()
    assert b"ann" not in [file.read_bytes() for file in folder.iterdir()]
    again = Bucket(s3)
    again.state(folder).restore()
    assert again.contents() == {"photos/bob/1": b"bob"}


def test_what_is_deleted_while_it_is_saved_is_left_out(s3: Any, folder: Path) -> None:
    """A person who was forgotten during a save made it fail: `The gallery could not be kept`."""
    bucket = Bucket(s3)
    bucket.put(photos__ann__1=b"ann", photos__bob__1=b"bob")
    watching = plain_client("s3", s3.meta.endpoint_url)

    def forget(**_: Any) -> None:
        s3.delete_object(Bucket=bucket.name, Key="photos/bob/1")

    watching.meta.events.register("before-call.s3.GetObject", forget)
    state = GalleryState(watching, bucket.name, folder)
    state.save()
    bucket.put()
    state.save()
    again = Bucket(s3)
    again.state(folder).restore()
    assert again.contents() == {"photos/ann/1": b"ann"}


def test_a_photo_replaced_under_its_key_is_saved_anew(s3: Any, folder: Path) -> None:
    bucket, again = Bucket(s3), Bucket(s3)
    state = bucket.state(folder)
    for content in (b"one", b"two"):
        bucket.put(photos__ann__1=content)
        state.save()
    again.state(folder).restore()
    assert again.contents() == {"photos/ann/1": b"two"}


def test_nothing_is_written_while_the_version_stays(s3: Any, folder: Path) -> None:
    bucket = Bucket(s3)
    bucket.put(photos__ann__1=b"ann")
    state = bucket.state(folder)
    state.save()
    s3.put_object(Bucket=bucket.name, Key="photos/bob/1", Body=b"its version comes later")
    state.save()
    assert list(json.loads((folder / "index.json").read_text())) == ["photos/ann/1", "version"]


def test_a_revoked_key_does_not_come_back(s3: Any, folder: Path) -> None:
    """Keys change without the gallery."""
    bucket, again = Bucket(s3), Bucket(s3)
    bucket.put(photos__ann__1=b"ann")
    state = bucket.state(folder)
    for keys in (b"two keys", b"one key"):
        s3.put_object(Bucket=bucket.name, Key="keys/keys.json", Body=keys)
        state.save()
    again.state(folder).restore()
    assert again.contents()["keys/keys.json"] == b"one key"


def test_restoring_is_no_change(s3: Any, folder: Path) -> None:
    bucket, again = Bucket(s3), Bucket(s3)
    bucket.put(photos__ann__1=b"ann")
    bucket.state(folder).save()
    state = again.state(folder)
    state.restore()
    modified = (folder / "index.json").stat().st_mtime_ns
    state.save()
    assert (folder / "index.json").stat().st_mtime_ns == modified


def test_a_first_start_finds_nothing_and_keeps_nothing(s3: Any, folder: Path) -> None:
    state = Bucket(s3).state(folder)
    assert state.restore() == 0
    state.save()
    assert not folder.exists()


def test_a_damaged_folder_says_how_to_start_without(s3: Any, folder: Path) -> None:
    bucket = Bucket(s3)
    bucket.put(photos__ann__1=b"ann")
    bucket.state(folder).save()
    index = json.loads((folder / "index.json").read_text())
    (folder / index["photos/ann/1"]).unlink()
    with pytest.raises(LocalError, match=r"lacks .*--fresh"):
        bucket.state(folder).restore()
    (folder / "index.json").write_text("{")
    with pytest.raises(LocalError, match=r"damaged.*--fresh"):
        bucket.state(folder).restore()


def test_an_aws_that_is_gone_is_a_local_error(s3: Any, folder: Path) -> None:
    state = GalleryState(plain_client("s3", "http://127.0.0.1:1"), "any", folder)
    with pytest.raises(LocalError, match="could not be kept"):
        state.save()


def test_two_starts_do_not_share_a_folder(tmp_path: Path) -> None:
    with lock(tmp_path / "state"), pytest.raises(LocalError, match="Another 'faceapp up'"):
        lock(tmp_path / "state")
    lock(tmp_path / "state").close()


def test_a_folder_that_cannot_be_made_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="cannot be used"):
        lock(tmp_path / "file" / "state")


def test_the_folder_is_where_the_desktop_keeps_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder("mine") == tmp_path / "faceapp" / "mine"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_folder("mine") == Path("/home/ann/.local/state/faceapp/mine")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_half_file_and_the_next_save_is_whole(s3: Any, folder: Path) -> None:
    """R6: what could not be written lay there for ever, on a disk that was full."""
    bucket, again = Bucket(s3), Bucket(s3)
    bucket.put(photos__ann__1=b"ann")
    state = bucket.state(folder)
    with full_disk(), pytest.raises(LocalError, match="could not be kept"):
        state.save()
    assert list(folder.iterdir()) == []
    (folder / "cut off by a kill.part").write_bytes(b"half")
    state.save()
    again.state(folder).restore()
    assert again.contents() == {"photos/ann/1": b"ann"}


def test_a_folder_of_before_is_for_this_user_alone(tmp_path: Path) -> None:
    """S6: what an older version made is mended at start."""
    folder = tmp_path / "faceapp" / "mine"
    (folder / "gallery").mkdir(parents=True)
    (folder / "gallery" / "face").write_bytes(b"face")
    (folder / "link").symlink_to(tmp_path)
    for path, mode in ((folder, 0o755), (folder / "gallery", 0o755), (folder / "gallery" / "face", 0o644)):
        path.chmod(mode)
    before = tmp_path.stat().st_mode
    lock(folder).close()
    places = (folder.parent, folder, folder / "gallery", folder / "gallery" / "face")
    assert [path.stat().st_mode & 0o777 for path in places] == [0o700, 0o700, 0o700, 0o600]
    assert tmp_path.stat().st_mode == before


def test_who_had_a_photo_first_has_had_it_first_after_a_restart(s3: Any, folder: Path) -> None:
    """R9: all came back within one second, so the alphabet decided whose photo it is."""
    photo_id = "0" * 24
    zoe, amy = (f"vectors/{name}/{photo_id}" for name in ("zoe", "amy"))
    bucket = Bucket(s3)

    def since(bucket: Bucket) -> dict[str, Any]:
        return {each["Key"]: each["LastModified"] for each in s3.list_objects_v2(Bucket=bucket.name)["Contents"]}

    def amy_is_later() -> bool:
        bucket.put(**{amy: b"vector"})
        times = since(bucket)
        return bool(times[zoe] < times[amy])

    bucket.put(**{zoe: b"vector"})
    wait_until(amy_is_later, what="another second")
    for _ in range(2):
        bucket.state(folder).save()
        bucket = Bucket(s3)
        assert bucket.state(folder).restore() == 3
        times = since(bucket)
        assert times[zoe] < times[amy]
