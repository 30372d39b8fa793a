"""The example application of celery_sqs, run as its README says: another app, two queues, a chord, a countdown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.support.aws import plain_client
from tests.support.services import (
    PATIENCE_S,
    REPOSITORY,
    aws_environ,
    celery_worker,
    free_port,
    users_environ,
    wait_until,
)

SHOP = REPOSITORY / "examples" / "shop"
VISIBILITY_S = 4


class Shop:
    """The shop of one test session, with a worker of two processes."""

    def __init__(self, endpoint: str, env: dict[str, str], log: Path) -> None:
        self.endpoint, self.env, self.log = endpoint, env, log

    def python(self, code: str) -> Any:
        """What `code` prints as JSON, in a process of its own that knows the shop."""
        done = subprocess.run(
            [sys.executable, "-c", f"import json, time; from shop import *\n{code}"],
            cwd=SHOP,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def runs(self, task_id: str) -> int:
        """How often a worker began the task."""
        return self.log.read_text().count(f"[{task_id}] received")


@pytest.fixture(scope="module")
def shop(aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    prefix, log = f"shop{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shop") / "log"
    plain_client("s3", aws_endpoint).create_bucket(Bucket=f"{prefix}-results")
    own = {"SHOP_PREFIX": prefix, "SHOP_VISIBILITY_S": str(VISIBILITY_S), "SHOP_WAIT_S": "1"}
    env = {
        **users_environ(),
        **aws_environ(aws_endpoint),
        **own,
        "PYTHONPATH": os.pathsep.join([str(SHOP), str(REPOSITORY)]),
    }
    with celery_worker("shop", log, env, "--queues", "orders,mail", "--concurrency", "2", cwd=SHOP):
        yield Shop(aws_endpoint, env, log)


def test_an_order_as_the_readme_shows_it(shop: Shop) -> None:
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=SHOP, env=shop.env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.splitlines() == ["cost: 72.0", "order: packed", "mail: 'Your order' sent to ada@example.org"]
    assert done.stdout in (SHOP / "README.md").read_text().replace("    ", "")


def test_a_result_is_found_by_its_id_from_any_process(shop: Shop) -> None:
    task_id = shop.python("print(json.dumps(price.delay('tea', 2).id))")
    assert shop.python(f"print(json.dumps(app.AsyncResult({task_id!r}).get(timeout=200)))") == 9.0


def test_a_failure_is_answered_where_its_message_does_not_come_again(shop: Shop) -> None:
    """With Celery's default, which acknowledges a failed task, nobody was ever told of it."""
    code = "try: price.delay('sofa', 1).get(timeout=200)\nexcept KeyError as e: print(json.dumps(str(e)))"
    assert shop.python(code) == "'sofa'"


def test_groups_and_chains_come_to_an_end(shop: Shop) -> None:
    code = "from celery import chain, group\n"
    code += "g = group(price.s('tea', n) for n in range(10))().get(timeout=200)\n"
    code += "c = (price.s('cup', 1) | group(total.si([n]) for n in range(5))).delay().get(timeout=200)\n"
    code += "print(json.dumps([g, c]))"
    assert shop.python(code) == [[4.5 * n for n in range(10)], [0, 1, 2, 3, 4]]


def test_a_chord_with_a_part_that_fails_raises_what_that_raised(shop: Shop) -> None:
    code = "r = chord([price.s('tea', 1), price.s('sofa', 1)])(total.s())\n"
    code += "try: r.get(timeout=200)\nexcept Exception as e: print(json.dumps([type(e).__name__, 'sofa' in str(e)]))"
    assert shop.python(code) == ["KeyError", True]


def test_a_task_longer_than_its_visibility_runs_once(shop: Shop) -> None:
    """celery/celery#7651: SQS would show the message again, and a second process would take it."""
    code = f"r = pack.delay({3 * VISIBILITY_S})\ntime.sleep(2)\nprint(json.dumps([r.id, r.get(timeout=200)]))"
    task_id, came = shop.python(code)
    assert came == "packed"
    assert shop.runs(task_id) == 1


def test_a_countdown_beyond_the_visibility_runs_once(shop: Shop) -> None:
    """celery/celery#4766: a worker would keep it and SQS show it again; here SQS keeps it."""
    task_id = shop.python("print(json.dumps(price.apply_async(('tea', 1), countdown=14).id))")
    assert shop.python(f"print(json.dumps(app.AsyncResult({task_id!r}).get(timeout=200)))") == 4.5
    assert shop.runs(task_id) == 1


def test_the_state_of_a_running_task_is_known(shop: Shop) -> None:
    code = "r = pack.delay(5)\nwhile app.AsyncResult(r.id).state == 'PENDING': time.sleep(0.1)\n"
    code += "print(json.dumps([app.AsyncResult(r.id).state, r.get(timeout=200), app.AsyncResult(r.id).state]))"
    assert shop.python(code) == ["STARTED", "packed", "SUCCESS"]


def test_a_result_larger_than_a_message_arrives_whole(shop: Shop) -> None:
    code = "print(json.dumps(len(send_mail.delay('x' * 150_000, 'y' * 150_000).get(timeout=200))))"
    assert shop.python(code) > 300_000


def test_a_second_queue_is_no_temporary_one(shop: Shop) -> None:
    """Its messages were lost with the process that had sent them."""
    sqs = plain_client("sqs", shop.endpoint)
    url = sqs.get_queue_url(QueueName=f"{shop.env['SHOP_PREFIX']}-mail")["QueueUrl"]
    kept = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["MessageRetentionPeriod"])["Attributes"]
    assert int(kept["MessageRetentionPeriod"]) >= 345_600
    assert not sqs.list_queue_tags(QueueUrl=url).get("Tags")


def test_a_scaler_in_a_dry_run_says_how_many_instances_the_queues_need(shop: Shop, tmp_path: Path) -> None:
    [command] = [each for each in (SHOP / "README.md").read_text().splitlines() if "celery_sqs scaler" in each]
    _, *arguments = command.split()
    log = tmp_path / "log"
    # The emulator takes seconds for the first call of EC2, and a scaler does not wait for long.
    plain_client("ec2", shop.endpoint).describe_launch_templates()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments, "--port", "0"], cwd=SHOP, env=shop.env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: process.poll() is not None or b"nothing to do: wanted 0" in log.read_bytes(), what="a tick")
        assert process.poll() is None, log.read_text()
        ids = shop.python("print(json.dumps([pack.delay(4).id for _ in range(12)]))")
        wait_until(lambda: b"would create worker-1" in log.read_bytes(), what="an instance that it would start")
        shop.python(f"print(json.dumps([app.AsyncResult(each).get(timeout=200) for each in {ids!r}]))")
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_flower_shows_the_shops_queues_to_who_has_the_password(shop: Shop, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    env = {**shop.env, "FLOWER_BASIC_AUTH": "ada:secret"}
    command = [sys.executable, "-m", "celery", "-A", "shop", "flower", f"--port={port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=SHOP, env=env, stdout=output, stderr=subprocess.STDOUT)

    def page(path: str, **headers: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()

    password = {"Authorization": f"Basic {b64encode(b'ada:secret').decode()}"}
    try:
        wait_until(lambda: process.poll() is not None or page("/healthcheck")[0] == 200, what="Flower")
        assert process.poll() is None, log.read_text()
        assert page("/broker")[0] == 401
        status, text = page("/broker", **password)
        assert status == 200
        assert f"{shop.env['SHOP_PREFIX']}-orders" in text
        wait_until(lambda: '"celery@' in page("/api/workers?refresh=1", **password)[1], what="the worker")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
