"""pytest's plugin for applications on celery_sqs, as somebody uses it who has only installed it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.services import PATIENCE_S, REPOSITORY, users_environ, wait_until

APP = """
import os
import celery, celery_sqs
app = celery.Celery("forge")
celery_sqs.configure(app, celery_sqs.Options(prefix="forge", results_bucket="forge-results", wait_s=1))
broken = celery.Celery("broken")
celery_sqs.configure(broken, celery_sqs.Options(prefix="broken", queues=("x",), create_queues=False))
elsewhere = celery.Celery("elsewhere")
celery_sqs.configure(elsewhere, celery_sqs.Options(prefix="forge", endpoint_url="https://sqs.eu-west-1.amazonaws.com"))

@app.task(name="forge.cast")
def cast(metal):
    print(f"casting {metal} {os.environ.get('MARK', '')}")
    if metal == "lead":
        raise ValueError("no lead here")
    return metal.upper()
"""


def run(folder: Path, test: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What pytest says of a user's test of the application above."""
    (folder / "forge.py").write_text(APP)
    (folder / "test_forge.py").write_text(test)
    return subprocess.run(command(folder), cwd=folder, env=users_environ(**env), capture_output=True, text=True)


def command(folder: Path) -> list[str]:
    off = [each for name in ("schemathesis", "anyio", "cacheprovider") for each in ("-p", f"no:{name}")]
    return [sys.executable, "-m", "pytest", "-q", *off, "--basetemp", str(folder / "tmp")]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    counts = re.findall(r"(\d+) (passed|failed|errors?)", done.stdout.splitlines()[-1])
    return {what: int(count) for count, what in counts}


def test_a_worker_does_what_a_test_sends(tmp_path: Path) -> None:
    """Also where the user has a profile, and messages and a bucket are left by the test before."""
    test = """
import os
import pytest
from forge import app, cast

@pytest.mark.parametrize("turn", [1, 2])
def test_twice(sqs_aws, sqs_worker, turn):
    assert "AWS_PROFILE" not in os.environ
    worker = sqs_worker("forge", "--concurrency", "1", MARK="of the test")
    assert cast.delay("iron").get(timeout=60) == "IRON"
    assert "casting iron of the test" in worker.output()
    app.send_task("forge.unknown", ignore_result=True, countdown=600)
    sqs = sqs_aws.client("sqs")
    url = sqs.get_queue_url(QueueName="forge-celery")["QueueUrl"]
    names = ["ApproximateNumberOfMessagesDelayed"]
    assert sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"][names[0]] == "1"
"""
    done = run(tmp_path, test, AWS_PROFILE="production")
    assert outcomes(done) == {"passed": 2}, done.stdout


def test_a_test_fails_where_the_application_does(tmp_path: Path) -> None:
    test = """
from forge import cast

def test_fails_with_what_the_worker_said(sqs_worker):
    sqs_worker("forge", "--concurrency", "1")
    cast.delay("lead").get(timeout=60)

def test_waits_in_vain(wait_until):
    wait_until(lambda: False, timeout_s=0.1, what="the gold")

def test_has_a_worker_that_cannot_start(sqs_worker):
    sqs_worker("forge:broken")

def test_would_leave_this_machine(sqs_worker):
    sqs_worker("forge:elsewhere")

def test_goes_well_all_the_same(wait_until):
    wait_until(lambda: True)
"""
    done = run(tmp_path, test)
    assert outcomes(done) == {"failed": 4, "passed": 1}, done.stdout
    said = " ".join(done.stdout.split())
    assert "ValueError: no lead here" in said
    assert "casting lead" in said, "the worker's output is shown"
    assert "the gold did not come true within 0.1 s" in said
    assert "the worker of forge:broken ended with status" in said
    assert "broken-x" in said
    assert "forge:elsewhere has the endpoint https://sqs.eu-west-1.amazonaws.com" in said


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['moto'] = None\n")
    done = run(tmp_path, "def test_any(sqs_aws): pass\n")
    assert outcomes(done) == {"error": 1}, done.stdout
    assert "The embedded AWS needs moto: pip install '.[testing]'." in done.stdout


def test_a_run_that_does_not_use_it_loads_nothing_of_it(tmp_path: Path) -> None:
    test = """
import sys

def test_any(request):
    assert request.config.pluginmanager.hasplugin("celery_sqs")
    heavy = ("boto3", "botocore", "celery", "gevent", "kombu", "moto", "celery_sqs.aws", "celery_sqs.testing.aws")
    assert [each for each in heavy if each in sys.modules] == []
"""
    done = run(tmp_path, test)
    assert outcomes(done) == {"passed": 1}, done.stdout


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    test = """
import time

def test_hangs(sqs_worker):
    sqs_worker("forge", "--concurrency", "1")
    open("ready", "w").close()
    time.sleep(3600)
"""
    (tmp_path / "forge.py").write_text(APP)
    (tmp_path / "test_forge.py").write_text(test)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command(tmp_path), cwd=tmp_path, env=users_environ(), stdout=log, stderr=log)
    wait_until(lambda: process.poll() is not None or (tmp_path / "ready").exists(), what="the test")
    left = psutil.Process(process.pid).children(recursive=True)
    assert len(left) >= 3, "the server, the worker and its pool"
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    try:
        wait_until(lambda: not any(_lives(each) for each in left), what="the end of what it had started")
    finally:
        for each in left:
            if _lives(each):
                each.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_shop_is_tested_with_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*command(tmp_path), "examples/shop"], cwd=REPOSITORY, env=users_environ(), capture_output=True, text=True
    )
    assert outcomes(done) == {"passed": 3}, done.stdout


def test_the_documents_example_is_one(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "celery.md").read_text().partition("## Testing an application")[2]
    (tmp_path / "test_shop.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    (tmp_path / "shop.py").write_text((REPOSITORY / "examples" / "shop" / "shop.py").read_text())
    done = subprocess.run(command(tmp_path), cwd=tmp_path, env=users_environ(), capture_output=True, text=True)
    assert outcomes(done) == {"passed": 1}, done.stdout


@pytest.mark.parametrize("again", [False, True])
def test_a_workers_log_may_be_of_one_before(aws: str, tmp_path: Path, again: bool) -> None:
    """Its mark of being ready would be taken for the new one's."""
    from celery_sqs.testing.worker import started

    log = tmp_path / "log"
    if again:
        log.with_name("log.ready").touch()
    with pytest.raises(AssertionError, match="the worker of no_such_module ended"), started("no_such_module", log=log):
        pass
