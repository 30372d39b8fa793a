"""Celery on SQS, SNS and S3, with workers from zero to N.

    app = Celery("shop")
    options = celery_sqs.Options(prefix="shop", queues=("orders", "mail"), results_bucket="shop-results")
    celery_sqs.configure(app, options)

Importing it changes nothing; `configure` changes the app that it is given.
"""

from celery_sqs.configure import configure
from celery_sqs.errors import BrokerUnavailable, ConfigurationError, Error, ResultTooLarge
from celery_sqs.hooks import GivenUp, Hooks
from celery_sqs.options import Options

__all__ = [
    "BrokerUnavailable",
    "ConfigurationError",
    "Error",
    "GivenUp",
    "Hooks",
    "Options",
    "ResultTooLarge",
    "configure",
]
