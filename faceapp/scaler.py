"""The scaler of the app tier: celery_sqs' own, with faceapp's names. `faceapp scaler [--dry-run]`."""

from __future__ import annotations

import threading

from celery_sqs import ScalerOptions, errors
from celery_sqs.scaler import loop
from faceapp import __version__, broker
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable, ConfigError, FaceappError, FleetError
from faceapp.observability import tracing
from faceapp.stack.data_tier import naming
from faceapp.work import pace
from faceapp.work.forgetting import LostOrders

LEASE_KEY = "scaler/lease.json"

ADVICE = {
    errors.NoLaunchTemplate: "Deploy the stack with FACEAPP_WORKER_IMAGE set to the workers' image (AMI).",
    errors.PortTaken: "Choose another port with FACEAPP_SCALER_PORT.",
}


def options(settings: Settings) -> ScalerOptions:
    """What `celery_sqs.scaler` is to do on a stack."""
    names = naming(settings.prefix)
    return ScalerOptions(
        stack=names.stack,
        max_instances=settings.scaler_max_instances,
        policy=settings.scaler_policy,
        mode=settings.scaler_mode,
        slo_s=settings.scaler_slo_s,
        tick_s=settings.scaler_tick_s,
        service_s=settings.scaler_service_s,
        boot_s=settings.scaler_boot_s,
        starts_per_minute=settings.scaler_starts_per_minute,
        daily_instance_s=settings.scaler_daily_instance_s,
        launch_template=f"{settings.prefix}-worker",
        instance_name=names.name,
        tag_namespace=names.namespace,
        tier=names.tier,
        other_instances=names.others,
        subnets=_list(settings.scaler_subnets),
        instance_types=_list(settings.scaler_types),
        lease_bucket=settings.gallery_bucket,
        lease_key=LEASE_KEY,
        # Where versions before 0.2 kept it, and where only results may be.
        former_lease_bucket=settings.out_bucket,
        dead_letter_queue=settings.dead_letter_queue,
        status_host=settings.scaler_host,
        status_port=settings.scaler_port,
        metrics_prefix="faceapp_scaler",
        version=__version__,
        cloudwatch_namespace="faceapp" if settings.scaler_cloudwatch == "yes" else "",
        worked_s=pace.worked_s,
        span=tracing.span,
        note=lambda told: tracing.note({f"faceapp.{name}": value for name, value in told.items()}),
    )


def run(settings: Settings, *, dry_run: bool = False, stop: threading.Event | None = None) -> None:
    """Scale until SIGTERM or SIGINT, which stop no instance.

    Raises ConfigError, BrokerUnavailable or FleetError when it cannot begin.
    """
    try:
        loop.run(
            broker.create_app(settings),
            options=options(settings),
            dry_run=dry_run,
            stop=stop,
            chores={"lost_orders": LostOrders(settings).send_again},
            expected=(FaceappError,),
        )
    except errors.ConfigurationError as error:
        raise ConfigError(" ".join((str(error), ADVICE.get(type(error), ""))).strip()) from error
    except errors.BrokerUnavailable as error:
        raise BrokerUnavailable(str(error)) from error
    except errors.Error as error:
        raise FleetError(str(error)) from error


def _list(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)
