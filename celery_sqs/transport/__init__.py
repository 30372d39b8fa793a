"""kombu's SQS transport, asking SQS less and repaired for fanout, replies and no-ack consumers.

Each override says why it is there and names upstream's issue where there is one.
"""

from celery_sqs.transport.channel import Channel, Transport

__all__ = ["Channel", "Transport"]
