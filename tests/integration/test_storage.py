from __future__ import annotations

import hashlib
import multiprocessing
import socket
import threading
import traceback
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import unquote

import boto3
import pytest
from botocore.client import BaseClient
from hypothesis import given
from hypothesis import strategies as st

from faceapp.config import Settings
from faceapp.errors import NotFound, RecognitionNotFound, SchemaError, StorageUnavailable
from faceapp.schema import REQUEST_ID, Box, Face, Photo, Recognition
from faceapp.storage import MAX_FILE_NAME_BYTES, Storage, encode_file_name, first_id_after
from tests.support.services import PATIENCE_S

PHOTO = bytes(range(256)) * 8


@pytest.fixture
def storage(stack: Settings) -> Storage:
    return Storage(stack)


def new_id() -> str:
    return uuid.uuid4().hex


def count_calls(client: BaseClient) -> list[str]:
    """The operations that this client sends, as they go out."""
    calls: list[str] = []
    client.meta.events.register("before-send.s3", lambda request, **_: calls.append(request.method))
    return calls


@pytest.mark.parametrize(
    "file_name",
    [
        "obama.jpg",
        "a b+c%20.jpg",
        "../../etc/passwd",
        'x"y\\z\r\nX-Evil: 1.png',
        "Ærøskøbing 大阪.webp",
        "",
        ".jpg",
        "\udcff.jpg",
    ],
)
def test_a_photo_comes_back_with_its_file_name(storage: Storage, file_name: str) -> None:
    request_id = new_id()
    storage.put_photo(request_id, PHOTO, file_name=file_name, content_type="image/jpeg")

    found = storage.get_photo(request_id)
    head = storage.photo_exists(request_id)

    assert found.data == PHOTO
    assert found.file_name == file_name.replace("\udcff", "?")
    assert found.content_type == "image/jpeg"
    assert found.sha256 == hashlib.sha256(PHOTO).hexdigest()
    assert head is not None
    assert (head.file_name, head.sha256, head.size_bytes) == (found.file_name, found.sha256, len(PHOTO))


def test_a_file_name_of_1000_emoji_is_shortened_and_keeps_its_suffix(storage: Storage) -> None:
    request_id = new_id()
    storage.put_photo(request_id, PHOTO, file_name="😀" * 1000 + ".jpg", content_type="image/jpeg")

    stem, _, suffix = storage.get_photo(request_id).file_name.rpartition(".")

    assert suffix == "jpg"
    assert set(stem) == {"😀"}
    assert len(stem) > 50


@given(st.text(st.characters(exclude_categories=())) | st.text("😀é.a ", min_size=200, max_size=2000))
def test_every_file_name_fits_into_metadata(name: str) -> None:
    encoded = encode_file_name(name)

    assert encoded.isascii()
    assert encoded.isprintable()
    assert len(encoded) <= MAX_FILE_NAME_BYTES
    assert "\ufffd" not in unquote(encoded).replace("\ufffd", "" if "\ufffd" in name else "\ufffd")


@pytest.mark.parametrize("content_type", ["", "image/jpeg\r\nX-Evil: 1", "imäge/jpeg", " image/jpeg", "image/jpeg\n"])
def test_a_content_type_that_is_no_header_is_left_out(storage: Storage, content_type: str) -> None:
    request_id = new_id()
    storage.put_photo(request_id, PHOTO, file_name="a.jpg", content_type=content_type)

    assert storage.get_photo(request_id).content_type == "application/octet-stream"


def test_what_is_not_there(storage: Storage) -> None:
    with pytest.raises(RecognitionNotFound):
        storage.get_photo(new_id())
    with pytest.raises(NotFound):
        storage.get_incoming(new_id(), 0)
    assert storage.photo_exists(new_id()) is None
    assert storage.get_result(new_id()) is None
    assert storage.get_gallery("version") is None
    assert storage.gallery_etag("version") is None
    assert list(storage.list_gallery("")) == []
    storage.delete_photo(new_id())
    storage.delete_gallery(["version"])
    storage.delete_gallery([])


@pytest.mark.parametrize("request_id", ["", "x", "A" * 32, "../" + "0" * 29, "0" * 31, "0" * 33, "0" * 32 + "\n"])
def test_an_id_of_another_shape_reaches_no_bucket(storage: Storage, request_id: str) -> None:
    calls = count_calls(storage.client)
    attempts: list[Callable[[], object]] = [
        lambda: storage.put_photo(request_id, PHOTO, file_name="a.jpg", content_type="image/jpeg"),
        lambda: storage.get_photo(request_id),
        lambda: storage.delete_photo(request_id),
        lambda: storage.photo_exists(request_id),
        lambda: storage.put_result(Recognition(id=request_id, status="done")),
        lambda: storage.get_result(request_id),
        lambda: storage.put_incoming(request_id, 0, PHOTO, name="amy", file_name="a.jpg"),
        lambda: storage.list_incoming(request_id),
        lambda: storage.get_incoming(request_id, 0),
        lambda: storage.delete_incoming(request_id),
    ]
    for attempt in attempts:
        with pytest.raises(RecognitionNotFound):
            attempt()
    assert calls == []


def test_a_result_comes_back_whole(storage: Storage) -> None:
    face = Face(
        box=Box(left=1, top=2.5, right=30, bottom=40),
        landmarks=((1.0, 2.0),) * 5,
        score=0.99,
        name="José",
        distance=0.4,
    )
    photo = Photo(width=640, height=480, format="JPEG")
    result = Recognition(id=new_id(), status="done", file_name="é\n.jpg", photo=photo, faces=(face,), model="dlib")
    storage.put_result(result)

    assert storage.get_result(result.id) == result


def test_a_result_of_another_version_is_refused(storage: Storage, stack: Settings) -> None:
    request_id = new_id()
    storage.client.put_object(Bucket=stack.out_bucket, Key=request_id, Body=b'{"version":99}')

    with pytest.raises(SchemaError, match="99"):
        storage.get_result(request_id)


def test_photos_wait_to_be_enrolled_with_their_names(storage: Storage) -> None:
    mine, other = new_id(), new_id()
    longest = "अ" * 64
    for n in range(11):
        storage.put_incoming(mine, n, PHOTO + bytes([n]), name=longest, file_name="😀" * 1000)
    storage.put_incoming(other, 0, PHOTO, name="amy", file_name="amy.jpg")

    assert storage.list_incoming(mine) == list(range(11))
    waiting = storage.get_incoming(mine, 10)
    assert (waiting.data, waiting.name) == (PHOTO + bytes([10]), longest)
    assert waiting.file_name.startswith("😀")

    storage.delete_incoming(mine)
    assert storage.list_incoming(mine) == []
    assert storage.get_incoming(other, 0).name == "amy"


def test_listing_and_deleting_go_beyond_one_page(storage: Storage) -> None:
    keys = [f"vectors/a%20b/{n:04}" for n in range(1005)]
    for key in keys:
        storage.put_gallery(key, b"")
    storage.put_gallery("photos/a", b"1")

    assert [key for key, _ in storage.list_gallery("vectors/")] == keys
    storage.delete_gallery(keys)
    assert [key for key, _ in storage.list_gallery("")] == ["photos/a"]


def test_what_somebody_else_left_beside_waiting_photos_is_passed_over(storage: Storage, stack: Settings) -> None:
    """C2: a foreign key ends no listing."""
    request_id = new_id()
    storage.put_incoming(request_id, 3, b"x", name="ann", file_name="x")
    for key in (f"incoming/{request_id}/", f"incoming/{request_id}/x", f"incoming/{request_id}/3/4", "incoming/é"):
        boto3.client("s3").put_object(Bucket=stack.gallery_bucket, Key=key, Body=b"")
    assert storage.list_incoming(request_id) == [3]
    assert storage.name_of_incoming("incoming/é") == ""


@pytest.mark.parametrize(
    ("key", "following"),
    [
        ("", "0" * 32),
        ("a", "a" + "0" * 31),
        ("a/b", "a0" + "0" * 30),
        ("a:b", "aa" + "0" * 30),
        ("ag", "b" + "0" * 31),
        ("ffg", None),
        ("scaler/lease.json", None),
        ("0" * 32, "0" * 31 + "1"),
        ("0" * 32 + "/x", "0" * 31 + "1"),
        ("0" + "f" * 31, "1" + "0" * 31),
        ("f" * 32, None),
    ],
)
def test_the_id_after_a_key(key: str, following: str | None) -> None:
    """C2: where a listing goes on whose page ended at any key."""
    assert first_id_after(key) == following


@given(key=st.text("/059:af`gé", max_size=40), request_id=st.text("059af", min_size=32, max_size=32))
def test_no_id_lies_between_a_key_and_the_one_after_it(key: str, request_id: str) -> None:
    following = first_id_after(key)
    if following is not None:
        assert REQUEST_ID.fullmatch(following)
        assert following > key
    if request_id > key:
        assert following is not None
        assert following <= request_id


def test_an_object_is_replaced_only_as_it_was_seen(storage: Storage) -> None:
    assert not storage.replace_gallery("version", b"0", etag='"never"')
    assert storage.replace_gallery("version", b"1", etag=None)
    assert not storage.replace_gallery("version", b"2", etag=None)
    etag = storage.gallery_etag("version")
    assert storage.replace_gallery("version", b"3", etag=etag)
    assert not storage.replace_gallery("version", b"4", etag=etag)
    found = storage.get_gallery("version")
    assert found is not None
    assert found.data == b"3"


def test_each_operation_is_one_call(storage: Storage) -> None:
    calls, request_id = count_calls(storage.client), new_id()
    storage.put_photo(request_id, PHOTO, file_name="a.jpg", content_type="image/jpeg")
    storage.get_photo(request_id)
    storage.photo_exists(request_id)
    storage.put_result(Recognition(id=request_id, status="done"))
    storage.get_result(request_id)

    assert calls == ["PUT", "GET", "HEAD", "PUT", "GET"]


def test_ready_asks_every_bucket(storage: Storage, stack: Settings) -> None:
    storage.ready()
    storage.client.delete_bucket(Bucket=stack.out_bucket)

    with pytest.raises(StorageUnavailable, match=stack.out_bucket):
        storage.ready()


def test_a_bucket_that_does_not_exist_is_named(aws: str) -> None:
    storage = Storage(Settings(prefix="nobody-made-this"))
    with pytest.raises(StorageUnavailable, match=r"nobody-made-this-in-bucket.*put_object"):
        storage.put_photo(new_id(), PHOTO, file_name="a.jpg", content_type="image/jpeg")
    with pytest.raises(StorageUnavailable, match=r"nobody-made-this-in-bucket.*get_object"):
        storage.get_photo(new_id())


def test_s3_that_is_down_is_one_error(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StorageUnavailable, match=f"{stack.in_bucket}.*get_object"):
            Storage(stack).get_photo(new_id())
        # It goes into logs and answers: who was asked for does not.
        person = new_id()
        with pytest.raises(StorageUnavailable) as raised:
            Storage(stack).get_gallery(f"photos/{person}/1")
    told = "".join(traceback.format_exception(raised.value))
    assert "EndpointConnectionError" in told
    assert person not in told


def test_an_answer_cut_off_in_its_body_is_the_same_error(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_half(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "x"\r\n\r\nonly this')

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_half, args=(server,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StorageUnavailable, match=stack.in_bucket):
            Storage(stack).get_photo(new_id())
        thread.join()


def test_threads_share_one_client(storage: Storage) -> None:
    together = threading.Barrier(8)
    clients: list[Any] = []

    def ask() -> None:
        together.wait()
        clients.append(storage.client)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(clients) == 8
    assert len({id(client) for client in clients}) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_client(storage: Storage) -> None:
    parents, request_id = storage.client, new_id()

    def child(pipe: Connection) -> None:
        storage.put_photo(request_id, PHOTO, file_name="child.jpg", content_type="image/jpeg")
        pipe.send(storage.client is parents)

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(sender,))
    process.start()
    process.join(PATIENCE_S)

    assert process.exitcode == 0
    assert receiver.recv() is False
    assert storage.client is parents
    assert storage.get_photo(request_id).file_name == "child.jpg"


def test_a_client_can_be_given(stack: Settings) -> None:
    client = boto3.session.Session().client("s3")
    assert Storage(stack, client=client).client is client


def test_timestamps_are_read_as_botocore_reads_them(storage: Storage, stack: Settings) -> None:
    """`_timestamp` replaces botocore's parser: an upgrade that changes what it may be given shows here."""
    storage.put_gallery("version", b"1")
    plain = boto3.session.Session().client("s3")
    for client in (storage.client, plain):
        assert client.head_object(Bucket=stack.gallery_bucket, Key="version")["LastModified"].tzinfo is not None
    own, theirs = (
        (
            client.head_object(Bucket=stack.gallery_bucket, Key="version")["LastModified"],
            client.list_objects_v2(Bucket=stack.gallery_bucket)["Contents"][0]["LastModified"],
        )
        for client in (storage.client, plain)
    )
    assert own == theirs
