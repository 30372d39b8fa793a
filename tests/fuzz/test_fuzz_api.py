"""The API beside its description: requests made from it, right and wrong, to a real web tier with a real worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from faceapp.config import Settings
from tests.support.aws import BEARER
from tests.support.fuzzing import EXAMPLES
from tests.support.services import REPOSITORY
from tests.support.web import plain, web_server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CONFIG = REPOSITORY / "tests" / "support" / "schemathesis.toml"
NAME = "Somebody"


@pytest.mark.fuzz
@pytest.mark.system
@pytest.mark.usefixtures("worker")
def test_the_api_does_what_its_description_says(
    aws_endpoint: str, system: Settings, samples: dict[str, Path], tmp_path: Path
) -> None:
    face = samples["obama.jpg"].read_bytes()
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, data in {"face": face, "no face": plain(64, 48), "cut off": face[:5000], "no photo": b"text"}.items():
        (photos / name).write_bytes(data)
    with web_server(aws_endpoint, system, tmp_path / "web") as (url, _):
        enrolled = requests.put(
            f"{url}/v1/people/{NAME}", files={"photo": ("a.jpg", face)}, headers=BEARER, timeout=240
        )
        assert enrolled.status_code in {200, 201}, enrolled.text
        asked = requests.post(f"{url}/v1/recognitions", files={"photo": ("a.jpg", face)}, headers=BEARER, timeout=240)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
                *(f"{url}/openapi.json", "--checks", ",".join(CHECKS)),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", str(max(10, EXAMPLES // 40))),
                *(["--generation-database", "none"] if EXAMPLES else ["--generation-deterministic"]),
                *("--generation-with-security-parameters", "false"),
                *("--header", f"Authorization: {BEARER['Authorization']}"),
                *("--request-timeout", "60", "--no-color", "--continue-on-failure"),
            ],
            cwd=tmp_path,  # it leaves files behind
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "tests.support.openapi_hooks",
                "PYTHONPATH": str(REPOSITORY),
                "FUZZ_PHOTOS": str(photos),
                "FUZZ_NAME": NAME,
                "FUZZ_PHOTO_ID": enrolled.json()["photos"][0]["id"],
                "FUZZ_REQUEST_ID": asked.json()["recognitions"][0]["id"],
            },
            capture_output=True,
            text=True,
        )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: " in done.stdout
