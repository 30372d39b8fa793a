"""Whether the installed torch is a build for CUDA: status 0 if it is, 1 if not.

torch itself is not imported: a CUDA build cannot be before its libraries are there.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path


def cuda() -> str:
    """CUDA's version; empty for a build without it. Raises ModuleNotFoundError without torch."""
    found = importlib.util.find_spec("torch")
    if not found or not found.origin:
        raise ModuleNotFoundError("torch is not installed")
    return runpy.run_path(str(Path(found.origin).parent / "version.py"))["cuda"] or ""


if __name__ == "__main__":
    sys.exit(not cuda())
