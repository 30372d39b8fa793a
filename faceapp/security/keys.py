"""API keys: who may use the web tier from elsewhere, and for what.

A key is `fa_<id>_<secret>`: the id is 8 hexadecimal digits, the secret 32 random bytes in base64url. All of them are
one JSON document in the gallery bucket, which every web process reads; there a secret is only its SHA-256. No salt and
no slow hash: those are for secrets that can be guessed, and NIST SP 800-63B (5.1.2.2) asks for no more than an approved
hash from 112 bits of entropy on; these have 256.

Operators write the document with their own credentials, each change on the condition that nobody else has changed it
since it was read. The web tier's role can only read it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from faceapp.errors import BadRequest, FaceappError, KeyNotFound, KeysUnreadable, StorageUnavailable
from faceapp.security.key_text import FORM, ROLES, new_id, new_secret, text_of
from faceapp.storage import Storage

OBJECT = "keys/keys.json"
VERSION = 1
RECOGNISE, ENROL, ADMIN = ROLES

MAX_NAME = 64
MOST_KEYS = 1000
MOST_DAYS = 3650
TRIES = 50
"""To write the document, each after somebody else's change."""

REFRESH_S = 5.0
"""A process believes what it read for so long: a revoked key is out then."""
NEW_KEY_S = 0.2
"""A key that is not among those it read may be a new one, unless they were read less than so long ago."""
PATIENCE_S = 2.0
"""A request waits for the document for so long, while an older one is at hand."""
RETRY_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Previous:
    """The secret that a rotated key had before, and until when it is still good."""

    sha256: str = field(repr=False)
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as it is kept: everything but its secret. Times are UTC."""

    id: str
    name: str
    role: str
    sha256: str = field(repr=False)
    created: datetime
    expires: datetime | None = None
    previous: Previous | None = None

    def may(self, role: str) -> bool:
        """Whether the key's role is `role` or one that may more."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, kw_only=True)
class Minted:
    """A key and its text, which is known at this moment only."""

    key: Key
    text: str = field(repr=False)


class Keys:
    """What operators do with keys. Every method raises StorageUnavailable, and KeysUnreadable for a damaged one."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def listing(self) -> list[Key]:
        """All keys, the oldest first."""
        return sorted(_load(self._storage)[0].values(), key=lambda each: (each.created, each.id))

    def create(self, *, name: str, role: str, days: int | None = None) -> Minted:
        """A new key, which expires after `days`. Raises BadRequest for a name or a number that cannot be one."""
        if not (0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()):
            raise BadRequest(f"A key's name is 1 to {MAX_NAME} printable characters.")
        if role not in ROLES:
            raise BadRequest(f"A key's role is one of {', '.join(ROLES)}.")
        if days is not None and not 1 <= days <= MOST_DAYS:
            raise BadRequest(f"A key is good for 1 to {MOST_DAYS} days, or until it is revoked.")

        def add(keys: dict[str, Key]) -> Minted:
            if len(keys) >= MOST_KEYS:
                raise BadRequest(f"There are {MOST_KEYS} keys already: revoke those that nobody uses.")
            while (key_id := new_id()) in keys:
                pass
            secret, now = new_secret(), _now()
            expires = now + timedelta(days=days) if days else None
            key = Key(id=key_id, name=name, role=role, sha256=_hash(secret), created=now, expires=expires)
            keys[key_id] = key
            return Minted(key=key, text=text_of(key_id, secret))

        return self._change(add)

    def rotate(self, key_id: str, *, grace_hours: float) -> Minted:
        """A new secret for the key; the one that it had is good for `grace_hours` more.

        Raises KeyNotFound, and BadRequest for a key that has expired. A secret from before an earlier rotation is out
        at once.
        """

        def renew(keys: dict[str, Key]) -> Minted:
            key, secret, now = _named(keys, key_id), new_secret(), _now()
            if key.expired(now):
                raise BadRequest(f"The key {key_id} has expired: create another.")
            until = now + timedelta(hours=grace_hours)
            previous = Previous(sha256=key.sha256, until=until) if grace_hours > 0 else None
            keys[key_id] = key = replace(key, sha256=_hash(secret), previous=previous)
            return Minted(key=key, text=text_of(key_id, secret))

        return self._change(renew)

    def revoke(self, key_id: str) -> Key:
        """Forget the key; what it was. Raises KeyNotFound."""

        def remove(keys: dict[str, Key]) -> Key:
            key = _named(keys, key_id)
            del keys[key_id]
            return key

        return self._change(remove)

    def _change(self, change: Callable[[dict[str, Key]], T]) -> T:
        for _ in range(TRIES):
            keys, etag = _load(self._storage)
            result = change(keys)
            if self._storage.replace_gallery(OBJECT, dump(keys), etag=etag):
                return result
            # Somebody else was first. Not in step with them the next time.
            time.sleep(random.uniform(0, 0.1))  # nosec B311 # only a pause
        raise StorageUnavailable("Others change the keys all the time: try again.")


class Keyring:
    """The keys as a web process knows them: read when they are needed, at most once in REFRESH_S by whoever asks.

    For a wrong key they are read again, at most once in NEW_KEY_S: it could have been made just now. While S3 does
    not answer, those that were read last are good. Any thread may call.
    """

    def __init__(self, storage: Storage, *, refresh_s: float = REFRESH_S) -> None:
        self._storage = storage
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._keys: Mapping[str, Key] | None = None
        self._broken: KeysUnreadable | None = None
        self._read_s = self._fresh_until_s = float("-inf")
        self._flight: Future[None] | None = None

    def find(self, text: str) -> Key | None:
        """The key of this text, if it is good now. Raises StorageUnavailable and KeysUnreadable."""
        form = FORM.fullmatch(text)
        if form is None:
            return None
        for most_s in (self._refresh_s, NEW_KEY_S):
            if key := match(self._current(most_s), form[1], form[2], _now()):
                return key
        return None

    def _current(self, most_s: float) -> Mapping[str, Key]:
        """The keys, read less than `most_s` ago if S3 answers."""
        with self._lock:
            flight = None
            if time.monotonic() >= min(self._fresh_until_s, self._read_s + most_s):
                flight = self._flight = self._flight or self._start()
        if flight:
            try:
                # The first reading is worth as long a wait as S3's client has patience for.
                flight.result(PATIENCE_S if self._keys is not None else None)
            except (FutureTimeoutError, StorageUnavailable):
                if self._keys is None:
                    raise
        if self._broken:
            raise KeysUnreadable(self._broken.detail)
        if self._keys is None:
            raise StorageUnavailable("The API keys cannot be read: the object storage does not answer.")
        return self._keys

    def _start(self) -> Future[None]:
        """In a thread of its own: no request waits for S3's last retry."""
        flight: Future[None] = Future()
        threading.Thread(target=self._read, args=(flight,), name="api-keys", daemon=True).start()
        return flight

    def _read(self, flight: Future[None]) -> None:
        # A change made while this was on its way is seen the next time.
        began_s, good_s, trouble = time.monotonic(), self._refresh_s, None
        try:
            self._keys, self._broken = _load(self._storage)[0], None
        except KeysUnreadable as error:
            self._keys, self._broken = {}, error
        except FaceappError as error:
            # Nor is it asked sooner for a wrong key.
            began_s, good_s, trouble = time.monotonic(), min(RETRY_S, self._refresh_s), error
        finally:
            with self._lock:
                self._read_s, self._fresh_until_s = math.inf if trouble else began_s, began_s + good_s
                self._flight = None
            if trouble:
                flight.set_exception(trouble)
            else:
                flight.set_result(None)


def owned(text: str, own: str) -> Key | None:
    """The admin's key that `own` (FACEAPP_LOCAL_KEY) is, if it is `text`. The time this takes tells nothing."""
    if not own or not hmac.compare_digest(_hash(text), _hash(own)):
        return None
    return Key(id=own.split("_")[1], name="this machine", role=ADMIN, sha256=_hash(own), created=_now())


def match(keys: Mapping[str, Key], key_id: str, secret: str, now: datetime) -> Key | None:
    """The key with this id, if `secret` is its secret and it is good `now`. The time this takes tells nothing."""
    key, hashed = keys.get(key_id), _hash(secret)
    previous = key.previous if key else None
    right = hmac.compare_digest(hashed, key.sha256 if key else _NOBODYS)
    was_right = hmac.compare_digest(hashed, previous.sha256 if previous else _NOBODYS)
    if key is None or key.expired(now):
        return None
    return key if right or (was_right and previous is not None and now < previous.until) else None


def dump(keys: Mapping[str, Key]) -> bytes:
    """The document."""
    return json.dumps({"version": VERSION, "keys": [_to_dict(each) for each in keys.values()]}, indent=1).encode()


def parse(data: bytes) -> dict[str, Key]:
    """The keys of a document, by id. Raises KeysUnreadable for one that is not exactly as `dump` makes it."""
    try:
        document = json.loads(data)
        if set(document) != {"version", "keys"} or document["version"] != VERSION:
            raise ValueError(f"its version is not {VERSION}")
        keys = [_from_dict(each) for each in document["keys"]]
        if len({each.id for each in keys}) != len(keys):
            raise ValueError("an id is there twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KeysUnreadable(
            f"The API keys cannot be read, so nobody's is good: {OBJECT} in the gallery bucket is damaged "
            f"({type(error).__name__}). Mend it, or delete it and create the keys anew."
        ) from error
    return {each.id: each for each in keys}


def _load(storage: Storage) -> tuple[dict[str, Key], str | None]:
    found = storage.get_gallery(OBJECT)
    return (parse(found.data), found.etag) if found else ({}, None)


def _to_dict(key: Key) -> dict[str, Any]:
    previous = {"sha256": key.previous.sha256, "until": _stamp(key.previous.until)} if key.previous else None
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "sha256": key.sha256,
        "created": _stamp(key.created),
        "expires": _stamp(key.expires) if key.expires else None,
        "previous": previous,
    }


def _from_dict(document: Mapping[str, Any]) -> Key:
    if set(document) != {"id", "name", "role", "sha256", "created", "expires", "previous"}:
        raise ValueError("a key has other fields")
    expires, previous = document["expires"], document["previous"]
    if previous is not None and set(previous) != {"sha256", "until"}:
        raise ValueError("a previous secret has other fields")
    return Key(
        id=_checked(document["id"], r"[0-9a-f]{8}"),
        name=_checked(document["name"], rf"(?s).{{1,{MAX_NAME}}}"),
        role=_checked(document["role"], "|".join(ROLES)),
        sha256=_checked(document["sha256"], r"[0-9a-f]{64}"),
        created=_time(document["created"]),
        expires=None if expires is None else _time(expires),
        previous=previous
        and Previous(sha256=_checked(previous["sha256"], r"[0-9a-f]{64}"), until=_time(previous["until"])),
    )


def _checked(value: Any, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError("a field has a value that it cannot have")
    return value


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _time(text: Any) -> datetime:
    return datetime.fromisoformat(_checked(text, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"))


def _named(keys: Mapping[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise KeyNotFound(f"There is no key with the id {key_id[:64]!r}: 'faceapp keys list' shows them.")
    return keys[key_id]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


_NOBODYS = _hash(new_secret())
"""What a secret is compared with when there is nothing to compare it with."""
