"""`faceapp bench load` against a real service."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from faceapp.cli import main
from faceapp.config import Settings
from faceapp.operations.client import Client
from tests.support.services import wait_until
from tests.support.web import web_server


@pytest.mark.system
def test_every_answer_of_a_real_service_is_right(
    system: Settings, worker: object, aws_endpoint: str, samples: dict[str, Path], tmp_path: Path
) -> None:
    person = f"p{uuid.uuid4().hex[:8]}"
    folder = tmp_path / "photos" / person
    folder.mkdir(parents=True)
    shutil.copy(samples["obama.jpg"], folder)
    with web_server(aws_endpoint, system, tmp_path / "web.log") as (url, _):
        Client(url).enrol(person, [samples["obama.jpg"]])
        # The worker looks for changes of the gallery every two seconds.
        wait_until(lambda: Client(url).recognise(samples["obama.jpg"]) == f"obama:{person}", what="the enrolment")
        written = tmp_path / "books.json"
        options = ["--images", str(folder.parent), "--concurrency", "10", "--photos", "20", "--api", "both"]
        done = CliRunner().invoke(main, ["bench", "load", url, *options, "--json", str(written)])
        Client(url).forget(person)
    assert done.exit_code == 0, done.output
    for found in json.loads(written.read_text()):
        assert (found["photos"], found["right"]) == (20, 20)
        # Both contracts tell where the time went, the classic one by its results' documents.
        assert found["shares"]["computing"] > 0
        assert found["web_rss_mib"]["peak"] > 0
        # No client's connection is left; those to S3 and SQS are kept, in pools of 64 and 16.
        assert found["web_files"]["after"] <= found["web_files"]["before"] + 64 + 16
