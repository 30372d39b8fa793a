"""Celery on SQS, SNS and S3, with workers from zero to N.

    app = Celery("shop")
    options = celery_sqs.Options(prefix="shop", queues=("orders", "mail"), results_bucket="shop-results")
    celery_sqs.configure(app, options)

Importing it changes nothing, and brings neither Celery nor boto3: a process that patches its sockets first (gevent) may
import it before. `configure` changes the app that it is given.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_sqs.application import configure
    from celery_sqs.errors import (
        BrokerUnavailable,
        ConfigurationError,
        Error,
        FleetError,
        LeaseLost,
        MessageTooLarge,
        ResultsUnavailable,
        ResultTooLarge,
        StorageUnavailable,
    )
    from celery_sqs.flower.options import FlowerOptions
    from celery_sqs.hooks import GivenUp, Hooks
    from celery_sqs.options import Options
    from celery_sqs.scaler.options import ScalerOptions

__all__ = [
    "BrokerUnavailable",
    "ConfigurationError",
    "Error",
    "FleetError",
    "FlowerOptions",
    "GivenUp",
    "Hooks",
    "LeaseLost",
    "MessageTooLarge",
    "Options",
    "ResultTooLarge",
    "ResultsUnavailable",
    "ScalerOptions",
    "StorageUnavailable",
    "configure",
]

_PLACES = {
    "configure": "application",
    "BrokerUnavailable": "errors",
    "ConfigurationError": "errors",
    "Error": "errors",
    "FleetError": "errors",
    "LeaseLost": "errors",
    "MessageTooLarge": "errors",
    "ResultTooLarge": "errors",
    "StorageUnavailable": "errors",
    "FlowerOptions": "flower.options",
    "ResultsUnavailable": "errors",
    "GivenUp": "hooks",
    "Hooks": "hooks",
    "Options": "options",
    "ScalerOptions": "scaler.options",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found
