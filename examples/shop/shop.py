"""A small shop on celery_sqs: two queues, a chord, a countdown and a long task.

    celery -A shop worker --queues orders,mail     works on both queues
    python shop.py                                 places an order and prints what came of it
    python -m celery_sqs scaler -A shop --dry-run  says how many instances its queues need

What it needs on AWS is in README.md.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, chord

import celery_sqs

PRICES = {"tea": 4.5, "cup": 12.0, "pot": 39.0}
PREFIX = os.environ.get("SHOP_PREFIX", "shop")

app = Celery("shop")
celery_sqs.configure(
    app,
    celery_sqs.Options(
        prefix=PREFIX,
        queues=("orders", "mail"),
        results_bucket=os.environ.get("SHOP_BUCKET", f"{PREFIX}-results"),
        # Much less than packing takes: a message is kept out of others' sight for as long as its task runs.
        visibility_s=int(os.environ.get("SHOP_VISIBILITY_S", "30")),
        # Instances of the launch template <prefix>-worker, from none to three.
        scaler=celery_sqs.ScalerOptions(max_instances=3, service_s=2.0),
        wait_s=int(os.environ.get("SHOP_WAIT_S", "20")),
    ),
)
app.conf.update(
    # A worker that is killed has lost nothing: the message comes again.
    task_acks_late=True,
    task_routes={"shop.send_mail": {"queue": "mail"}},
    task_track_started=True,
)


@app.task(name="shop.price")
def price(item: str, count: int) -> float:
    """What `count` of `item` cost. Raises KeyError for what is not sold here."""
    return PRICES[item] * count


@app.task(name="shop.total")
def total(prices: list[float]) -> float:
    """The sum of an order's lines."""
    return round(sum(prices), 2)


@app.task(name="shop.pack")
def pack(seconds: float) -> str:
    """Pack an order, which takes its time."""
    time.sleep(seconds)
    return "packed"


@app.task(name="shop.send_mail")
def send_mail(to: str, subject: str) -> str:
    """Stands for a mail server."""
    return f"{subject!r} sent to {to}"


def place_order(lines: dict[str, int], *, packing_s: float = 1.0, mail_after_s: float = 3.0) -> dict[str, Any]:
    """Place an order and wait for it; returns what it costs, and what came of packing it and of the mail."""
    cost = chord(price.s(item, count) for item, count in lines.items())(total.s())
    packed = pack.delay(packing_s)
    mail = send_mail.apply_async(("ada@example.org", "Your order"), countdown=mail_after_s)
    return {"cost": cost.get(timeout=300), "order": packed.get(timeout=300), "mail": mail.get(timeout=300)}


if __name__ == "__main__":
    for name, came in place_order({"tea": 2, "cup": 2, "pot": 1}).items():
        print(f"{name}: {came}")
