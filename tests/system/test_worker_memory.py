"""The memory limit of a worker's process: a photo that takes too much ends as a result, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.services import REPOSITORY

LIMITED = """
from faceapp.config import Settings
from faceapp.errors import ImageTooLarge
from faceapp.images import decode
from faceapp.work.worker import Worker
from PIL import Image
from tests.support.web import encoded, plain

large = encoded(Image.new("RGB", (7000, 7000)), "PNG")
largest = encoded(Image.new("L", (16_320, 12_240)), "JPEG")
Worker(Settings(worker_memory_mib=100)).limit_memory()
limits = Settings().photo_limits
decode(plain(), **limits)
print(decode(largest, **limits).image.size)
try:
    decode(large, **limits)
except ImageTooLarge as error:
    print(error.detail)
"""


def test_a_photo_that_takes_too_much_memory_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=REPOSITORY,
        env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    # R5: a JPEG of 200 million pixels takes no more than a small one.
    refused = "The photo needs more memory to be decoded than one may take here."
    assert done.stdout.splitlines() == ["(2040, 1530)", refused], done.stderr
