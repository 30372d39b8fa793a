"""The product's tasks, none of which ever succeeds: `celery -A tests.failing worker` makes dead letters of them."""

from __future__ import annotations

from faceapp import broker
from faceapp.config import settings

app = broker.create_app(settings())


def fail(request_id: str) -> None:
    """Raise."""
    raise ValueError(f"no luck with {request_id}")


for name in ("faceapp.recognize", "faceapp.enrol", "tests.fail"):
    app.task(name=name, shared=False)(fail)
