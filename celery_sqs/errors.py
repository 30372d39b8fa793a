"""What can go wrong on purpose, under one root."""

from __future__ import annotations


class Error(Exception):
    """Anything that celery_sqs raises itself; botocore's and kombu's errors come through as they are."""


class ConfigurationError(Error):
    """An option, a region or an AWS profile that cannot be used."""


class NoLaunchTemplate(ConfigurationError):
    """There is nothing to make instances from."""


class PortTaken(ConfigurationError):
    """Something listens where the scaler's status is to be."""


class BrokerUnavailable(Error):
    """A queue that is needed is not there, or SQS does not answer."""


class DeadLetterNotFound(Error):
    """There is no such dead letter."""


class StorageUnavailable(Error):
    """S3 does not answer, or refuses: a later try may succeed."""


class ScalerUnreachable(Error):
    """No scaler answers where its status should be."""


class FleetError(Error):
    """Instances are not started or stopped as the scaler asks: a later tick tries again."""


class LeaseLost(Error):
    """Another scaler may be acting: this one must not."""


class ResultTooLarge(Error):
    """A result is larger than a reply can carry, and there is no bucket for it."""


class ResultsUnavailable(Error):
    """The results' bucket or a reply queue cannot be used: the message names the call, the place and AWS's reason.

    `passing` is true where the same call may succeed in a while: AWS did not answer, or asks for patience.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class MessageTooLarge(Error):
    """A message is larger than SQS or SNS takes, and there is no bucket for it."""
