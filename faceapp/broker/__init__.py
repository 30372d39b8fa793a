"""Celery on SQS: the transport, the message format, the events and the app's settings.

kombu's SQS transport carries tasks. What it lacks for replies, events and remote control over SNS is added here by
overriding a few methods; each override says why it is there and names upstream's issue where there is one, and
tests/upstream/test_upstream.py fails when upstream makes one needless.
"""

from faceapp.broker.app import FaceappCelery, GivenUp, create_app
from faceapp.broker.clients import ready, sqs_client
from faceapp.broker.transport import Channel, Transport

__all__ = ["Channel", "FaceappCelery", "GivenUp", "Transport", "create_app", "ready", "sqs_client"]
