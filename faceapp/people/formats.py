"""The gallery's two kinds of vector objects as bytes: one photo's, and the snapshot of all."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
FLOAT = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True, eq=False)
class Vector:
    """What a model made of one photo."""

    model: str
    rows: NDArray[np.float32]
    """[2, D]: the face as seen, and the same face at low resolution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The vectors of many photos, by key and ETag."""

    model: str
    keys: Sequence[str]
    etags: Sequence[str]
    rows: NDArray[np.float32]
    """[2, N, D]"""


def pack_vector(vector: Vector) -> bytes:
    """JSON with the numbers in base64. Holds no time: the same photo makes the same bytes, so that enrolling it again
    changes nothing; S3 knows when it was written."""
    document = {
        "version": FORMAT,
        "model": vector.model,
        "dimension": vector.rows.shape[1],
        "descriptors": base64.b64encode(vector.rows.astype(FLOAT).tobytes()).decode(),
    }
    return json.dumps(document).encode()


def unpack_vector(data: bytes) -> Vector:
    """Raises ValueError on anything that `pack_vector` did not write."""
    try:
        document = json.loads(data)
        if document["version"] != FORMAT:
            raise ValueError(f"its format is {document['version']!r}, this program reads {FORMAT}")
        rows = np.frombuffer(base64.b64decode(document["descriptors"], validate=True), dtype=FLOAT)
        rows = rows.reshape(2, int(document["dimension"])).astype(np.float32)
        model = str(document["model"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it does not fit: {error!r}") from error
    if not np.isfinite(rows).all():
        raise ValueError("it has numbers that are not finite")
    return Vector(model=model, rows=rows)


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """numpy's npz, uncompressed; keys and ETags are ASCII lines, so reading it needs no pickle."""
    file = io.BytesIO()
    np.savez(
        file,
        allow_pickle=False,
        format=np.array(FORMAT),
        model=np.array(snapshot.model),
        keys=_lines(snapshot.keys),
        etags=_lines(snapshot.etags),
        rows=snapshot.rows,
    )
    return file.getvalue()


def unpack_snapshot(data: bytes) -> Snapshot:
    """Raises ValueError on anything that `pack_snapshot` did not write."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if int(arrays["format"]) != FORMAT:
                raise ValueError(f"its format is {arrays['format']}, this program reads {FORMAT}")
            keys, etags = (arrays[name].tobytes().decode("ascii").split("\n") for name in ("keys", "etags"))
            rows, model = np.asarray(arrays["rows"]), str(arrays["model"])
    except Exception as error:  # zipfile, zlib and numpy raise nearly every builtin exception on damaged files
        raise ValueError(f"it does not fit: {error!r}") from error
    if rows.dtype != np.float32 or rows.ndim != 3 or rows.shape[:2] != (2, len(keys)) or len(etags) != len(keys):
        raise ValueError(f"its parts do not fit: {len(keys)} keys, {len(etags)} ETags, {rows.dtype} {rows.shape}")
    return Snapshot(model=model, keys=keys, etags=etags, rows=rows)


def _lines(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode("ascii"), dtype=np.uint8)
