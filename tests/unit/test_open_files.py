"""The limit of open files is raised as far as the system lets it, and is never lowered."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: a lowered limit cannot always be raised again, and all later tests would have it.
ALLOW = """
import resource, sys
from faceapp.operations import open_files
soft, hard, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(open_files.allow(count), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "count", "allowed"),
    [
        pytest.param(100, 150, 150, id="more than before"),
        pytest.param(100, 50, 100, id="not lowered"),
        pytest.param(100, 500, 200, id="as many as there can be"),
    ],
)
def test_open_files(soft: int, count: int, allowed: int) -> None:
    arguments = [str(soft), "200", str(count)]
    process = subprocess.run([sys.executable, "-c", ALLOW, *arguments], capture_output=True, text=True, timeout=240)
    assert process.stdout.split() == [str(allowed), str(allowed), "200"], process.stderr
