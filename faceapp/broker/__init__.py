"""faceapp's Celery app on SQS: its settings, and the gate for its messages."""

from celery_sqs import GivenUp
from celery_sqs.transport import Channel, Transport
from faceapp.broker.app import TRIES, FaceappCelery, create_app, options, use_slot
from faceapp.broker.clients import ready, sqs_client

__all__ = [
    "TRIES",
    "Channel",
    "FaceappCelery",
    "GivenUp",
    "Transport",
    "create_app",
    "options",
    "ready",
    "sqs_client",
    "use_slot",
]
