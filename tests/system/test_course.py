"""G4: a course from its photos and its CSV file to its grader."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.integration.test_cli import faceapp
from tests.integration.test_course import ID, csv_of, folder
from tests.support.services import wait_until
from tests.system.test_local_up import Running, running

__all__ = ["folder"]


@pytest.fixture
def course(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, "--course", ID, prefix=ID, more={"FACEAPP_NEAREST": "always"}) as system:
        yield system


@pytest.mark.system
def test_from_a_folder_and_a_csv_to_the_graders_run(course: Running, folder: Path) -> None:
    """G4: what docs/course.md says, and then 60 photos at once, each in a request of its own."""
    labels = "Image,Results\ntest_000,Barack\ntest_001,Joe\ntest_002,Eileen\ntest_003,Barack\ntest_004,Barack\n"
    assert course.client.people() == {}, "a grader's people could be answered with the samples' names"
    state = {"XDG_STATE_HOME": str(course.log.parent)}
    done = faceapp("people", "--url", course.client.url, "import", folder, "--csv", csv_of(folder, labels), **state)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("5 of 5 photos are answered right.\n")
    assert course.client.people() == {"Barack": 1, "Eileen": 1, "Joe": 1}

    names = dict(line.split(",") for line in labels.splitlines()[1:])
    photos = {photo.stem: photo.read_bytes() for photo in folder.iterdir()}
    asked = [(f"test_{number:03}", f"test_{number % 5:03}") for number in range(60)]

    def ask(stem: str, of: str) -> str:
        # As the course's generator: a connection each, no key, no time limit.
        fields = {"inputFile": (f"{stem}.jpg", photos[of])}
        with urllib3.PoolManager(retries=False) as http:
            answer = http.request("POST", f"{course.client.url}/", fields=fields)
        assert answer.status == 200, answer.data
        return answer.data.decode()

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: ask(*each), asked))
    assert answers == [f"{stem}:{names[of]}" for stem, of in asked]
    check_buckets(course, len(asked))

    course.client.enrol("Somebody Else", [folder / "test_003.jpg"])
    more = csv_of(folder, f"{labels}test_999,Joe\n")
    done = faceapp("people", "--url", course.client.url, "import", folder, "--csv", more, **state)
    assert done.returncode == 1
    assert done.stdout.endswith("5 of 6 photos are answered right.\n")
    assert f"{more} does not name everybody in the gallery (1 more)" in done.stderr


def check_buckets(course: Running, count: int) -> None:
    """Uploads in one, results in the other, and no instance once all is answered."""
    aws = course.aws("s3")
    uploads, results = (keys(aws, f"{ID}-{kind}-bucket") for kind in ("in", "out"))
    assert (len(uploads), len(results)) == (count, count)
    assert {key.partition(".")[0] for key in uploads} == {key.partition(".")[0] for key in results}
    ec2 = course.aws("ec2")
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    tags = [{"Name": "tag:Name", "Values": ["app-tier-instance-*"]}]
    wait_until(lambda: not ec2.describe_instances(Filters=[*states, *tags])["Reservations"], what="no instance")


def keys(s3: Any, bucket: str) -> set[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {each["Key"] for page in pages for each in page.get("Contents", ())}
