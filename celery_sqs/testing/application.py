"""What an application needs on the embedded AWS, and leaves there."""

from __future__ import annotations

from dataclasses import dataclass

from celery.app.utils import find_app

from celery_sqs import options
from celery_sqs.errors import ConfigurationError
from celery_sqs.options import Options
from celery_sqs.testing.aws import REGION, EmbeddedAws


@dataclass(frozen=True)
class Place:
    """An application's place there."""

    options: Options
    aws: EmbeddedAws

    @classmethod
    def of(cls, app: str, aws: EmbeddedAws) -> Place:
        """That of the application that `celery -A` finds by this name.

        Raises ConfigurationError for one that is told to go elsewhere: its buckets and messages may be real ones.
        """
        found = options.of(find_app(app))
        if found.endpoint_url not in ("", aws.endpoint):
            raise ConfigurationError(
                f"{app} has the endpoint {found.endpoint_url}, and its tests would reach that AWS: leave the option "
                "out in tests, and it goes where the environment says"
            )
        return cls(found, aws)

    def make_buckets(self) -> None:
        """Those that its options name. One that is there stays as it is."""
        for bucket in {self.options.results_bucket, self.options.messages_bucket} - {""}:
            self.aws.client("s3").create_bucket(Bucket=bucket)

    def empty_queues(self) -> None:
        """Delete what its work queues still have."""
        sqs = self.aws.client("sqs", region=self.options.region or REGION)
        for name in self.options.queue_names:
            try:
                sqs.purge_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])
            except sqs.exceptions.QueueDoesNotExist:  # nothing was sent to it
                continue
