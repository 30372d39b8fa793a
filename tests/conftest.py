"""Fixtures for every test; and a clean environment before anything of the product is imported."""

from __future__ import annotations

import os
import uuid

for _variable in [name for name in os.environ if name.startswith(("AWS_", "FACEAPP_"))]:
    del os.environ[_variable]
# The app of faceapp.tasks is made when the module is imported: this session's stack is named after it.
os.environ["FACEAPP_PREFIX"] = f"t{uuid.uuid4().hex[:8]}"
os.environ["FACEAPP_QUEUE_WAIT_S"] = "2"

from tests.support.aws import aws, aws_endpoint, stack  # noqa: E402
from tests.support.photos import recogniser, samples  # noqa: E402
from tests.support.services import system, worker  # noqa: E402

__all__ = ["aws", "aws_endpoint", "recogniser", "samples", "stack", "system", "worker"]
