"""What the fuzzer of the API puts into half of its requests: real photos and ids, so that they come further than a 415.

Schemathesis imports this module (SCHEMATHESIS_HOOKS). FUZZ_PHOTOS is a folder of files; FUZZ_NAME, FUZZ_PHOTO_ID and
FUZZ_REQUEST_ID are there in the service.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import schemathesis

PHOTOS = [path.read_bytes() for path in sorted(Path(os.environ["FUZZ_PHOTOS"]).iterdir())]
REAL = {name: os.environ[f"FUZZ_{name.upper()}"] for name in ("name", "photo_id", "request_id")}


def _dice(value: object) -> int:
    """The same value gives the same number: a case that failed has to fail again."""
    return zlib.crc32(repr(value).encode())


def _photo(value: Any) -> Any:
    if isinstance(value, list):
        return [_photo(each) for each in value]
    if not isinstance(value, bytes) or _dice(value) % 3 == 0:
        return value
    return PHOTOS[_dice(value) % len(PHOTOS)]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return {field: _photo(value) for field, value in body.items()} if isinstance(body, dict) else body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    if not path_parameters:
        return path_parameters
    return {name: REAL[name] if name in REAL and _dice(value) % 2 else value for name, value in path_parameters.items()}
