"""The product's tasks, none of which ever succeeds: `celery -A tests.support.failing worker` makes dead letters.

What goes wrong is up to the photo's file name: KILLS takes its process with it, HANGS does not end, LATE ends with its
time limit's warning; any other task raises.
"""

from __future__ import annotations

import os
import threading

from faceapp import broker
from faceapp.config import settings
from faceapp.storage import Storage
from faceapp.work.given_up import Undertaker

KILLS, HANGS, LATE = "kills.jpg", "hangs.jpg", "late.jpg"

app = broker.create_app(settings())
undertaker, storage = Undertaker(settings()), Storage(settings())


def fail(request_id: str) -> None:
    """Do what the photo's name says, or raise."""
    photo = storage.photo_exists(request_id)
    file_name = photo.file_name if photo else ""
    if file_name == KILLS:
        os._exit(1)
    while file_name in (HANGS, LATE):
        try:
            threading.Event().wait()
        except Exception:
            if file_name == LATE:
                raise
    raise ValueError(f"no luck with {request_id}")


for name in ("faceapp.recognize", "faceapp.enrol", "tests.fail"):
    app.task(name=name, shared=False)(fail)


def give_up(task: broker.GivenUp) -> object:
    """As the product does."""
    result = undertaker.give_up(task)
    return result.to_dict() if result else None


app.give_up = give_up
