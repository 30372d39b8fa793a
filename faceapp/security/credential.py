"""The credential of one start: `faceapp up` makes it and hands it to its parts, and the commands here find it.

It is an API key of the admin's for the web tier, the key that Flower asks for, and the embedded AWS's access key is
derived from it. A file in the state folder, which only the user may read, says which start answers at which port. It
goes with a clean stop; one that is left behind opens nothing, since each start has another.

`python -m faceapp.security.credential` prints a new one, for a part that is started by hand (FACEAPP_LOCAL_KEY).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from celery_sqs.door import is_loopback_url
from faceapp.config import Settings
from faceapp.config import settings as environment_settings
from faceapp.security.key_text import FORM, new_text

START, CURL, AWS = FILES = ("start.json", "curl.conf", "aws.env")
"""What the commands read; what curl takes with -K; what a shell reads before boto3, aws or celery is used."""


def states_folder() -> Path:
    """`$XDG_STATE_HOME` or ~/.local/state, then faceapp: with a folder for each prefix."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "faceapp"


def aws_keys(key: str) -> dict[str, str]:
    """The access key of the embedded AWS that was started with `key`. Its id alone is a secret of 160 bits."""
    return {"AWS_ACCESS_KEY_ID": _derived(key, "id"), "AWS_SECRET_ACCESS_KEY": _derived(key, "secret")}


def fresh() -> dict[str, str]:
    """The variables of a new start, for the embedded AWS and for those who use it."""
    key = new_text()
    return {"FACEAPP_LOCAL_KEY": key, **aws_keys(key)}


@contextlib.contextmanager
def kept(folder: Path, key: str, ports: Mapping[str, int], environ: Mapping[str, str]) -> Iterator[None]:
    """Say in `folder` what the start answers to at its `ports`, until the block ends; `environ` is for a shell."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environ.items()))
    try:
        _write(folder / START, json.dumps({"key": key, "ports": dict(ports)}))
        _write(folder / CURL, f'header = "Authorization: Bearer {key}"\n')
        _write(folder / AWS, exports)
        yield
    finally:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def key_for(url: str, settings: Settings | None = None) -> str:
    """The key to send to `url`: FACEAPP_API_KEY, or that of the start that answers there; empty where there is none.

    Only for addresses of this machine: no start's key goes anywhere else.
    """
    settings = settings or environment_settings()
    return settings.api_key or local_key_for(url, settings)


def local_key_for(url: str, settings: Settings | None = None) -> str:
    """The credential of the start that answers at `url`; empty where none does."""
    if not is_loopback_url(url):
        return ""
    if own := (settings or environment_settings()).local_key:
        return own
    try:
        port = urlsplit(url).port
    except ValueError:  # there is no such port
        return ""
    for file in sorted(states_folder().glob(f"*/{START}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            start = json.loads(file.read_text("utf-8"))
            if port in start["ports"].values() and FORM.fullmatch(start["key"]):
                return str(start["key"])
    return ""


def _derived(key: str, purpose: str) -> str:
    digest = hmac.digest(key.encode(), f"faceapp embedded AWS {purpose}".encode(), hashlib.sha256)
    return base64.b32encode(digest[:20]).decode()


def _write(file: Path, text: str) -> None:
    """Readable for the user alone from its first byte on, and complete or not there."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(text)
    part.replace(file)


if __name__ == "__main__":
    print(new_text())
