"""The books themselves: what they are there to find is made here, and found."""

from __future__ import annotations

import dataclasses

import pytest

from faceapp.schema import Recognition
from tests.faults.conftest import Running
from tests.faults.system import System, books, burst


def result(system: System, id: str) -> Recognition:
    found = system.storage.get_result(id)
    assert found
    return found


@pytest.mark.slow_fault
def test_whatever_is_lost_doubled_or_wrong_is_found(run: Running) -> None:
    with run() as system:
        sent = burst(system, 9)
        assert books(system, sent).balanced
        ids = [id for [id] in system.photos().values()]
        results = [result(system, id) for id in ids]
        out = system.settings.out_bucket

        system.s3.delete_object(Bucket=out, Key=ids[0])
        found = books(system, sent)
        assert (len(found.lost), len(found.doubled), len(found.wrong)) == (1, 0, 0)
        system.storage.put_result(results[0])

        # Another person: not who is on the photo, and not what the client was told.
        face = dataclasses.replace(results[1].faces[0], name="nobody")
        system.storage.put_result(dataclasses.replace(results[1], faces=(face,)))
        assert books(system, sent).wrong
        system.storage.put_result(results[1])

        # Another's result.
        system.s3.put_object(Bucket=out, Key=ids[2], Body=results[3].to_json().encode())
        assert len(books(system, sent).wrong) >= 2
        system.storage.put_result(results[2])

        # Done, and a dead letter all the same.
        url = system.sqs.get_queue_url(QueueName=system.settings.dead_letter_queue)["QueueUrl"]
        body = f'{{"headers": {{"task": "faceapp.recognize"}}, "body": [["{ids[4]}"], {{}}, {{}}]}}'
        system.sqs.send_message(QueueUrl=url, MessageBody=body)
        found = books(system, sent)
        assert (found.dead, len(found.lost), len(found.doubled), len(found.wrong)) == (1, 0, 1, 0)
        system.sqs.purge_queue(QueueUrl=url)

        # The same file under two ids.
        data = system.storage.get_photo(ids[5])
        system.storage.put_photo("f" * 32, data.data, file_name=data.file_name, content_type="image/jpeg")
        assert len(books(system, sent).doubled) == 1
