"""Putting an application on SQS, SNS and S3."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from celery_sqs.control import Control
from celery_sqs.events import Events, install
from celery_sqs.flower import take_over
from celery_sqs.options import Options
from celery_sqs.queues import sweeper
from celery_sqs.results.backend import ProcessAddress
from celery_sqs.transport.messages import AMQP

TRANSPORT = "celery_sqs.transport:Transport"
BACKEND = "celery_sqs.results:Backend"


def configure(app: Celery, options: Options) -> None:
    """Put transport, results, control and events of `app` on SQS, SNS and S3. Opens no connection.

    Call it before the app is used; settings that the application has made itself stay, those named here excepted.
    """
    install()
    take_over(options.flower)
    if options.sweep:
        sweeper.install()
    app.sqs_options = options
    app.amqp_cls, app.control_cls, app.events_cls = AMQP, Control, Events
    for name in ("amqp", "control", "events"):
        app.__dict__.pop(name, None)
    app.backend_cls = None
    app._local = ProcessAddress(app)
    app.conf.update(
        broker_url=options.broker_url,
        broker_transport=TRANSPORT,
        broker_transport_options=options.transport_options(),
        result_backend=BACKEND,
        result_backend_thread_safe=True,
        broker_connection_retry_on_startup=True,
        task_default_queue=options.queues[0],
        task_queues=[Queue(name, routing_key=name) for name in options.queues],
        # The scaler and Flower know from them which workers are there.
        worker_send_task_events=True,
    )
