"""What can go wrong on purpose, under one root."""

from __future__ import annotations


class Error(Exception):
    """Anything that celery_sqs raises itself; botocore's and kombu's errors come through as they are."""


class ConfigurationError(Error):
    """An option, a region or an AWS profile that cannot be used."""


class BrokerUnavailable(Error):
    """A queue that is needed is not there, or SQS does not answer."""


class ResultTooLarge(Error):
    """A result is larger than a reply can carry, and there is no bucket for it."""


class MessageTooLarge(Error):
    """A message is larger than SQS or SNS takes, and there is no bucket for it."""
