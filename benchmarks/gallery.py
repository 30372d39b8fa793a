"""How long a search of the gallery takes, and how a worker's gallery is loaded.

    python -m benchmarks.gallery [--rows 1000 10000 100000] [--objects 2000]

The vectors are random on the unit sphere, which is the hardest case for the exact search: everybody is about equally
far. The peer is what face_recognition's `face_distance` computes (`norm(rows - probe)` and its smallest), one probe
after the other. Loading asks the embedded AWS (moto's server, a process of its own) for real.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# As a worker is: one thread. OpenBLAS reads this when numpy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray

from faceapp.config import Settings
from faceapp.people import Gallery
from faceapp.people.formats import Snapshot, Vector, pack_snapshot, pack_vector
from faceapp.people.journal import note_change
from faceapp.people.people import SNAPSHOT, VECTORS, path_of
from faceapp.people.table import Listed, Table
from faceapp.storage import Storage

DIMENSION = 128
PHOTOS_PER_PERSON = 4
THRESHOLD = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--objects", type=int, default=2_000, help="vectors to load from the embedded AWS")
    options = parser.parse_args()

    print(f"search, one thread, {DIMENSION} numbers, {PHOTOS_PER_PERSON} photos a person; medians in ms per call")
    print(
        f"{'rows':>8} {'probes':>6} {'gallery':>9} {'numpy norm':>11} {'ratio':>7} {'memory MB':>10} {'update ms':>10}"
    )
    for size in options.rows:
        search_rows(size)
    load_rows(options.objects)


def search_rows(size: int) -> None:
    table = make_table(size)
    rng = np.random.default_rng(1)
    update_ms = milliseconds(lambda: add_one(table), seconds=1.0)
    for probes in (1, 8):
        faces = unit(rng.normal(size=(probes, DIMENSION)))

        def ours(faces: NDArray[np.float32] = faces) -> object:
            return table.search(faces, low_resolution=False, threshold=THRESHOLD, candidates=5)

        def peer(faces: NDArray[np.float32] = faces) -> object:
            return [np.argmin(np.linalg.norm(table.rows[0] - face, axis=1)) for face in faces]

        own_ms, peer_ms = milliseconds(ours), milliseconds(peer)
        memory = f"{table.size_bytes / 1e6:10.1f} {update_ms:10.1f}" if probes == 1 else ""
        print(f"{size:8} {probes:6} {own_ms:9.3f} {peer_ms:11.3f} {peer_ms / own_ms:6.1f}x {memory}", flush=True)


def add_one(table: Table) -> Table:
    listing = {key: Listed(etag, 0.0) for key, etag in zip(table.keys, table.etags, strict=True)}
    key = VECTORS + path_of("zoe", "f" * 24)
    listing[key] = Listed("new", 0.0)
    return table.updated(listing, {key: ("new", table.rows[:, 0])})


def load_rows(objects: int) -> None:
    with embedded_aws():
        settings = Settings(prefix=f"bench-{uuid.uuid4().hex[:8]}")
        storage = Storage(settings)
        storage.client.create_bucket(Bucket=settings.gallery_bucket)
        table = make_table(objects)
        for i, key in enumerate(table.keys):
            storage.put_gallery(key, pack_vector(Vector(model="bench", rows=table.rows[:, i])))
        note_change(storage)

        def boot() -> tuple[float, Gallery]:
            gallery = Gallery(storage, model="bench", dimension=DIMENSION)
            start = time.perf_counter()
            gallery.refresh()
            return time.perf_counter() - start, gallery

        alone_s, gallery = boot()  # finds no snapshot, and writes one
        snapshot_s, again = boot()
        if len(gallery) != objects or again.version != gallery.version:
            raise SystemExit(f"loaded {gallery.version} and {again.version} of {objects}")
        print(
            f"\nload {objects} vectors from the embedded AWS: "
            f"object by object (and writing the snapshot) {alone_s:.2f} s,"
        )
        print(f"from the snapshot {snapshot_s:.2f} s ({alone_s / snapshot_s:.0f} times faster)")

        big = make_table(100_000)
        content = Snapshot(model="bench", keys=big.keys, etags=big.etags, rows=big.rows)
        start = time.perf_counter()
        data = pack_snapshot(content)
        packed_s = time.perf_counter() - start
        storage.put_gallery(SNAPSHOT, data)
        start = time.perf_counter()
        fetched = storage.get_gallery(SNAPSHOT)
        fetched_s = time.perf_counter() - start
        size_mb = len(fetched.data) / 1e6 if fetched else 0
        print(f"a snapshot of {len(big)}: {size_mb:.0f} MB, packed in {packed_s:.2f} s, fetched in {fetched_s:.2f} s")
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def make_table(size: int) -> Table:
    rows = unit(np.random.default_rng(0).normal(size=(2, size, DIMENSION)))
    keys = sorted(VECTORS + path_of(f"person {i // PHOTOS_PER_PERSON}", f"{i:024x}") for i in range(size))
    return Table(keys, ['"etag"'] * size, rows)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def milliseconds(call: Callable[[], object], *, seconds: float = 2.0) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@contextmanager
def embedded_aws() -> Iterator[None]:
    """moto's server in a process of its own, so that its CPU is not ours."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(keys, AWS_REGION="us-east-1", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        yield
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the embedded AWS did not start")


if __name__ == "__main__":
    main()
