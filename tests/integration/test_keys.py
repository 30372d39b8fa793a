"""API keys: what is kept of them, how several operators make and revoke them, and how a web process reads them."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from faceapp.cli import main
from faceapp.config import Settings
from faceapp.errors import BadRequest, ConfigError, KeyNotFound, KeysUnreadable, StorageUnavailable
from faceapp.security import keys as module
from faceapp.security.key_text import FORM, ROLES
from faceapp.security.keys import OBJECT, Key, Keyring, Keys, Minted, dump, match, parse
from faceapp.storage import GalleryObject, Storage
from tests.support.services import wait_until

commands: Any = importlib.import_module("faceapp.cli.keys")
"""The module: its package has the group of commands under this name."""


@pytest.fixture
def storage(stack: Settings) -> Storage:
    return Storage(stack)


@pytest.fixture
def keys(storage: Storage) -> Keys:
    return Keys(storage)


class Memory:
    """The one object, without S3: how often it was read, and whether it can be."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.reads = 0
        self.down = False
        self.gate = threading.Event()
        self.gate.set()

    def get_gallery(self, key: str) -> GalleryObject | None:
        assert key == OBJECT
        self.reads += 1
        self.gate.wait(240)
        if self.down:
            raise StorageUnavailable
        return (
            GalleryObject(data=self.data, etag="x", last_modified=datetime.now(UTC), answered=datetime.now(UTC))
            if self.data
            else None
        )

    def replace_gallery(self, key: str, data: bytes, *, etag: str | None) -> bool:
        self.data = data
        return True


def secret_of(minted: Minted) -> str:
    form = FORM.fullmatch(minted.text)
    assert form
    return form[2]


def found(minted: Minted, key: Key | None = None, **later: float) -> Key | None:
    """What a process finds for the text of `minted`, when it knows `key` (by default the key itself)."""
    key = key or minted.key
    return match({key.id: key}, key.id, secret_of(minted), key.created + timedelta(**later))


# Making them.


def test_a_key_is_known_by_its_text_which_is_kept_nowhere(keys: Keys, storage: Storage) -> None:
    minted = keys.create(name="the gate's camera", role="recognise")
    assert Keyring(storage).find(minted.text) == minted.key == keys.listing()[0]
    kept = storage.get_gallery(OBJECT)
    assert kept
    secret = secret_of(minted)
    assert secret not in kept.data.decode()
    assert hashlib.sha256(secret.encode()).hexdigest() in kept.data.decode()
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    assert secret not in repr(minted)
    assert minted.key.sha256 not in repr(minted)


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "a\x1b[31m", " a"])
def test_a_name_is_printable(keys: Keys, name: str) -> None:
    with pytest.raises(BadRequest):
        keys.create(name=name, role="admin")
    assert keys.listing() == []


@pytest.mark.parametrize(("role", "days"), [("root", None), ("", None), ("admin", 0), ("admin", -1), ("admin", 10**6)])
def test_a_key_has_a_role_and_an_end_that_exist(keys: Keys, role: str, days: int | None) -> None:
    with pytest.raises(BadRequest):
        keys.create(name="x", role=role, days=days)


def test_each_role_may_do_what_those_before_it_may() -> None:
    keys = Keys(Memory())  # type: ignore[arg-type]
    may = {role: [each for each in ROLES if keys.create(name="x", role=role).key.may(each)] for role in ROLES}
    assert may == {
        "recognise": ["recognise"],
        "enrol": ["recognise", "enrol"],
        "admin": ["recognise", "enrol", "admin"],
    }


def test_a_key_expires(keys: Keys) -> None:
    minted = keys.create(name="x", role="enrol", days=2)
    assert found(minted, days=1.9) == minted.key
    assert found(minted, days=2) is None


def test_a_rotated_key_is_good_under_both_secrets_for_a_while(keys: Keys, storage: Storage) -> None:
    first = keys.create(name="x", role="enrol")
    second = keys.rotate(first.key.id, grace_hours=2)
    assert second.key.id == first.key.id
    assert second.text != first.text
    now = second.key
    assert found(first, now, hours=1.9) == found(second, now, hours=1.9) == now
    assert found(first, now, hours=2.1) is None
    assert found(second, now, hours=1000) == now
    third = keys.rotate(first.key.id, grace_hours=2)
    assert found(first, third.key) is None
    assert found(second, third.key) == third.key
    last = keys.rotate(first.key.id, grace_hours=0)
    assert found(third, last.key) is None
    assert Keyring(storage).find(last.text) == last.key


def test_an_expired_key_is_not_rotated(keys: Keys, storage: Storage) -> None:
    key = keys.create(name="x", role="enrol", days=1).key
    storage.put_gallery(OBJECT, dump({key.id: replace(key, expires=key.created - timedelta(days=1))}))
    with pytest.raises(BadRequest, match="expired"):
        keys.rotate(key.id, grace_hours=1)


def test_a_revoked_key_is_gone(keys: Keys, storage: Storage) -> None:
    stays, goes = (keys.create(name=name, role="admin") for name in ("stays", "goes"))
    assert keys.revoke(goes.key.id) == goes.key
    assert keys.listing() == [stays.key]
    assert Keyring(storage).find(goes.text) is None
    for change in (lambda: keys.revoke(goes.key.id), lambda: keys.rotate(goes.key.id, grace_hours=1)):
        with pytest.raises(KeyNotFound):
            change()


def test_operators_at_once_lose_nothing(stack: Settings) -> None:
    def operator(number: int) -> list[str]:
        keys = Keys(Storage(stack))
        made = [keys.create(name=f"{number}", role="recognise").key.id for _ in range(3)]
        keys.revoke(made.pop())
        keys.rotate(made[0], grace_hours=1)
        return made

    with ThreadPoolExecutor(4) as pool:
        made = [each for batch in pool.map(operator, range(4)) for each in batch]
    left = Keys(Storage(stack)).listing()
    assert {each.id for each in left} == set(made)
    assert sum(each.previous is not None for each in left) == 4


# Knowing them.


def test_only_the_whole_secret_is_right(keys: Keys, storage: Storage) -> None:
    first, second = (keys.create(name=name, role="admin") for name in "ab")
    ring, secret = Keyring(storage), secret_of(first)
    mixed = f"fa_{second.key.id}_{secret}"
    unknown = f"fa_{int(first.key.id, 16) ^ int(second.key.id, 16) ^ 1:08x}_{secret}"
    cut, cased = first.text[:-1], f"fa_{first.key.id}_{secret.swapcase()}"
    for wrong in (mixed, unknown, cut, cased, first.text + "A", first.text + "\n", "", "fa_", first.key.sha256):
        assert ring.find(wrong) is None, wrong
    assert ring.find(first.text) == first.key


@given(st.text() | st.from_regex(FORM, fullmatch=True) | st.from_regex(r"fa_[0-9a-fA-F]{1,9}_.{0,60}", fullmatch=True))
def test_no_text_that_was_not_printed_is_a_key(text: str) -> None:
    memory = Memory()
    Keys(memory).create(name="x", role="admin")  # type: ignore[arg-type]
    assert Keyring(memory).find(text) is None  # type: ignore[arg-type]


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "keys", "id", "role"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_what_is_no_document_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(KeysUnreadable, match="delete it and create the keys anew"):
        parse(data)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "0"},
        {"id": 1},
        {"role": "root"},
        {"sha256": None},
        {"sha256": "00"},
        {"created": "yesterday"},
        {"created": "2026-02-30T00:00:00Z"},
        {"expires": 5},
        {"previous": {}},
        {"previous": []},
        {"previous": {"sha256": "0" * 64, "until": None}},
        {"more": 1},
    ],
)
def test_a_document_with_one_wrong_field_is_refused(change: dict[str, Any]) -> None:
    memory = Memory()
    keys = Keys(memory)  # type: ignore[arg-type]
    minted = keys.create(name="x", role="recognise", days=5)
    keys.rotate(minted.key.id, grace_hours=1)
    assert memory.data
    assert dump(parse(memory.data)) == memory.data
    document = json.loads(memory.data)
    document["keys"][0] |= change
    with pytest.raises(KeysUnreadable):
        parse(json.dumps(document).encode())


def test_a_document_of_another_version_or_with_an_id_twice_is_refused() -> None:
    memory = Memory()
    Keys(memory).create(name="x", role="recognise")  # type: ignore[arg-type]
    assert memory.data
    document = json.loads(memory.data)
    for wrong in ({**document, "version": 2}, {**document, "keys": document["keys"] * 2}):
        with pytest.raises(KeysUnreadable):
            parse(json.dumps(wrong).encode())


# A web process.


def ring_of(memory: Memory, **options: float) -> tuple[Keyring, Minted]:
    minted = Keys(memory).create(name="x", role="recognise")  # type: ignore[arg-type]
    memory.reads = 0
    return Keyring(memory, **options), minted  # type: ignore[arg-type]


def test_many_requests_read_the_keys_once() -> None:
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=3600)
    memory.gate.clear()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ring.find, minted.text) for _ in range(20)]
        wait_until(lambda: memory.reads, what="the first reading")
        memory.gate.set()
        assert {each.result() for each in asked} == {minted.key}
    assert memory.reads == 1


def test_a_new_key_is_good_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=3600)
    monkeypatch.setattr(module, "NEW_KEY_S", 3600)
    assert ring.find(minted.text)
    new = Keys(memory).create(name="y", role="admin")  # type: ignore[arg-type]
    # Whoever tries keys does not have S3 asked each time.
    memory.reads = 0
    assert ring.find(new.text) is None
    assert memory.reads == 0
    monkeypatch.setattr(module, "NEW_KEY_S", 0)
    assert ring.find(new.text) == new.key
    assert memory.reads == 1


def test_what_was_read_too_long_ago_is_not_believed() -> None:
    """Not even once, by the request that makes it be read again."""
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=0)
    assert ring.find(minted.text)
    Keys(memory).revoke(minted.key.id)  # type: ignore[arg-type]
    assert ring.find(minted.text) is None


def test_without_s3_the_keys_that_were_read_are_good() -> None:
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=0)
    memory.down = True
    with pytest.raises(StorageUnavailable):
        ring.find(minted.text)
    memory.down = False
    assert ring.find(minted.text) == minted.key
    memory.down = True
    assert ring.find(minted.text) == minted.key
    assert ring.find(f"fa_00000000_{secret_of(minted)}") is None


def test_a_slow_s3_holds_nobody_whose_key_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=0)
    assert ring.find(minted.text)
    memory.gate.clear()
    reads = memory.reads
    assert [ring.find(minted.text) for _ in range(5)] == [minted.key] * 5
    assert memory.reads == reads + 1
    memory.gate.set()


def test_with_a_damaged_document_nobody_gets_in_until_it_is_mended() -> None:
    memory = Memory()
    ring, minted = ring_of(memory, refresh_s=0)
    whole = memory.data
    assert ring.find(minted.text)
    memory.data = b"{"
    with pytest.raises(KeysUnreadable, match="Mend it"):
        ring.find(minted.text)
    with pytest.raises(KeysUnreadable):
        Keys(memory).create(name="y", role="admin")  # type: ignore[arg-type]
    memory.data = whole
    assert ring.find(minted.text) == minted.key


def test_expiry_is_looked_at_each_time() -> None:
    memory = Memory()
    ring, minted = ring_of(memory)
    key = minted.key
    assert ring.find(minted.text)
    memory.data = dump({key.id: replace(key, expires=key.created - timedelta(seconds=1))})
    assert Keyring(memory).find(minted.text) is None  # type: ignore[arg-type]


# The commands.


def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
    answer = CliRunner().invoke(main, ["keys", *arguments, "--aws"], env=env)
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    return answer


@pytest.fixture
def operator(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(commands, "settings", lambda: stack)
    return stack


def test_the_commands_make_show_rotate_and_revoke(operator: Settings) -> None:
    ring = Keyring(Storage(operator), refresh_s=0)
    made = run("create", "--name", "gate", "--role", "enrol", "--days", "30")
    text = made.stdout.strip()
    key = ring.find(text)
    assert key
    assert (key.name, key.role) == ("gate", "enrol")
    assert text not in made.stderr
    [shown] = json.loads(run("list", "--json").stdout)["keys"]
    assert (shown["id"], shown["name"], shown["role"]) == (key.id, "gate", "enrol")
    listed = run("list").stdout
    assert key.id in listed
    assert key.sha256 not in listed
    rotated = run("rotate", key.id).stdout.strip()
    assert {ring.find(text), ring.find(rotated)} == {ring.find(rotated)}
    assert run("rotate", key.id, "--grace", "0").exit_code == 0
    assert ring.find(rotated) is None
    assert run("revoke", key.id).exit_code == 0
    assert "No API keys" in run("list").stdout
    gone = run("revoke", key.id)
    assert gone.exit_code == 1
    assert "'faceapp keys list' shows them" in gone.output


def test_the_commands_know_the_roles() -> None:
    assert commands.ROLES == ROLES


def test_settings_show_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"fa_0123abcd_{'s' * 43}"
    settings = Settings.from_environ({"FACEAPP_API_KEY": text})
    assert settings.api_key == text
    assert text not in repr(settings)
    with pytest.raises(ConfigError) as wrong:
        Settings.from_environ({"FACEAPP_API_KEY": text + "s"})
    assert "ssss" not in wrong.value.detail
    monkeypatch.setattr("faceapp.cli.settings", lambda: settings)
    shown = CliRunner().invoke(main, ["settings"]).output
    assert "FACEAPP_API_KEY=(set)" in shown
    assert "ssss" not in shown
