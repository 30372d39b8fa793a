"""What becomes of crafted messages with a real worker."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from faceapp.config import Settings
from faceapp.operations.dead_letters import DeadLetters
from faceapp.stack import data_tier as deployment
from tests.support.aws import plain_client
from tests.support.services import aws_environ, celery_worker, environ, wait_until
from tests.unit.test_messages import message


@pytest.fixture(scope="module")
def crafted(aws_endpoint: str) -> Settings:
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        deployment.apply(settings)
    return settings


@pytest.mark.usefixtures("aws")
def test_crafted_messages_become_dead_letters_and_cost_no_process(
    crafted: Settings, aws_endpoint: str, tmp_path: Path
) -> None:
    """With the template's visibility timeout: they go back at once."""
    sqs = plain_client("sqs", aws_endpoint)
    queue = sqs.get_queue_url(QueueName=crafted.request_queue)["QueueUrl"]
    sent = {
        "rubbish": "it is not JSON",
        json.dumps(message(headers__timelimit=-5)): "its time limits are not two",
        json.dumps(message(content_type="application/x-python-serialize")): "its content is not JSON in UTF-8",
        json.dumps(message(headers__task="os.system")): "its task 'os.system' is none of ours",
    }
    for body in sent:
        sqs.send_message(QueueUrl=queue, MessageBody=body)
    letters, log = DeadLetters(crafted), tmp_path / "log"
    with celery_worker("tests.support.failing", log, environ(aws_endpoint, crafted), "--concurrency", "1") as worker:
        wait_until(lambda: letters.count() == len(sent), timeout_s=240, what="the dead letters")
        assert worker.poll() is None
    found = {each.body: each.reason for each in letters.listing().letters}
    assert found == {body: f"no worker takes it: {why}" for body, why in sent.items()}
    assert "received" not in log.read_text()
