"""What an API key looks like: `fa_<id>_<secret>`, an id of 8 hexadecimal digits and 32 random bytes in base64url."""

from __future__ import annotations

import base64
import re
import secrets

FORM = re.compile(r"fa_([0-9a-f]{8})_([0-9A-Za-z_-]{43})")
SECRET_BYTES = 32
ROLES = ("recognise", "enrol", "admin")
"""What a key is for; each may do what those before it may."""


def new_id() -> str:
    """An id; whether it is free is for its keeper to say."""
    return secrets.token_hex(4)


def new_secret() -> str:
    """A secret of 256 random bits."""
    return base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()


def text_of(key_id: str, secret: str) -> str:
    """The key as its owner sends it."""
    return f"fa_{key_id}_{secret}"


def new_text() -> str:
    """The text of a key that nobody has."""
    return text_of(new_id(), new_secret())
