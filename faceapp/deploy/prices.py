"""What AWS takes, in US dollars: its Price List's answer for the stack's own region, or a small table with a date.

The Price List knows a product by its service, attributes and a usage type, which in most regions begins with a short
name of the region. A price has tiers; free ones are passed over, since they are the account's and not the stack's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from statistics import fmean
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from faceapp.config import aws
from faceapp.deploy.target import Target

ASKED_IN = "us-east-1"
"""A region whose Price List knows every region of the partition `aws`. Others have prices in another currency, or none
that their accounts can ask."""
LIMITS: dict[str, Any] = {
    "connect_timeout": 2,
    "read_timeout": 5,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
"""botocore's settings: an estimate may not hold up a plan."""
AT_ONCE = 4
"""Calls: there are about eleven, and AWS refuses many in a second."""
MOST_PAGES = 5
"""Of one answer: the filters leave a few products."""
KNOWN_SINCE = "us-east-1, January 2025"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars for one unit of each thing, and where they are from. The defaults are the table with the date.

    An hour of an instance is by its type, Linux and on demand; `spot_hour` is the mean of the zones at this moment.
    """

    instance_hour: Mapping[str, float] = field(
        default_factory=lambda: {"t3a.small": 0.0188, "c7a.medium": 0.05132, "t4g.small": 0.0168, "c7g.medium": 0.0363}
    )
    """In the table: those that the template and the runbook name, for amd64 and arm64."""
    spot_hour: Mapping[str, float] = field(default_factory=dict)
    address_hour: float = 0.005
    volume_gb_month: float = 0.08
    s3_gb_month: float = 0.023
    s3_put: float = 0.005 / 1000
    s3_get: float = 0.0004 / 1000
    sqs_request: float = 0.40 / 1e6
    sns_publish: float = 0.50 / 1e6
    alarm_month: float = 0.10
    metric_month: float = 0.30
    source: str = f"list prices, {KNOWN_SINCE}"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Query:
    """One product, by its service, a pattern of the usage type behind the region, its unit, and what to filter by."""

    words: str
    service: str
    usage: str
    unit: str
    filters: Mapping[str, str]

    def means(self, usage_type: str) -> bool:
        return re.fullmatch(rf"([A-Z0-9]+-)?{self.usage}", usage_type) is not None


_QUERIES: Mapping[str, _Query] = {
    "address_hour": _Query(
        "public addresses", "AmazonVPC", "PublicIPv4:InUseAddress", "Hrs", {"group": "VPCPublicIPv4Address"}
    ),
    "volume_gb_month": _Query("EBS", "AmazonEC2", r"EBS:VolumeUsage\.gp3", "GB-Mo", {"volumeApiName": "gp3"}),
    "s3_gb_month": _Query("S3 storage", "AmazonS3", "TimedStorage-ByteHrs", "GB-Mo", {"volumeType": "Standard"}),
    "s3_put": _Query("S3 writes", "AmazonS3", "Requests-Tier1", "Requests", {"group": "S3-API-Tier1"}),
    "s3_get": _Query("S3 reads", "AmazonS3", "Requests-Tier2", "Requests", {"group": "S3-API-Tier2"}),
    "sqs_request": _Query("SQS", "AWSQueueService", "Requests-(RBP|Tier1)", "Requests", {"queueType": "Standard"}),
    "sns_publish": _Query("SNS", "AmazonSNS", "Requests-Tier1", "Requests", {"group": "SNS-Requests-Tier1"}),
    "alarm_month": _Query("alarms", "AmazonCloudWatch", "CW:AlarmMonitorUsage", "Alarms", {"productFamily": "Alarm"}),
    "metric_month": _Query(
        "metrics", "AmazonCloudWatch", "CW:MetricMonitorUsage", "Metrics", {"productFamily": "Metric"}
    ),
}
_LINUX = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used"}


def _instance(kind: str) -> _Query:
    return _Query(kind, "AmazonEC2", rf"BoxUsage:{re.escape(kind)}", "Hrs", {"instanceType": kind, **_LINUX})


class _NotAsked(Exception):
    """Why the Price List gives no prices, as the end of a sentence."""


def ask(target: Target, parameters: Mapping[str, str]) -> Prices:
    """Today's prices for a stack with these parameters; the table's, with a note that says why, where there are none.

    Each call is tried twice at most, with 2 s to connect and 5 s for each part of an answer. After the first one that
    fails no other is made.
    """
    try:
        return _asked(target, parameters)
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        reason = f"could not be asked ({error})"
    except _NotAsked as error:
        reason = str(error)
    return Prices(notes=(f"AWS's Price List {reason}: these are prices of {KNOWN_SINCE}.",))


def _asked(target: Target, parameters: Mapping[str, str]) -> Prices:
    if target.embedded:
        raise _NotAsked("is not asked for an AWS on this machine, which bills nothing")
    if aws.session().get_partition_for_region(target.region) != "aws":
        raise _NotAsked(f"has no prices in US dollars that can be asked for from {target.region}")
    types = sorted({parameters["WebType"], parameters["WorkerType"]})
    found = _find(target, {**_QUERIES, **{kind: _instance(kind) for kind in types}})
    if not found:
        raise _NotAsked(f"has no prices of {target.region}")
    rates: dict[str, Any] = {name: found[name] for name in _QUERIES if name in found}
    lacking = [query.words for name, query in _QUERIES.items() if name not in found]
    note = f"AWS's Price List gives no one price for {', '.join(lacking)}: taken from {KNOWN_SINCE}."
    return Prices(
        **rates,
        instance_hour={kind: found[kind] for kind in types if kind in found},
        spot_hour=_spot_hour(target, parameters["WorkerType"]) if parameters["WorkerMarket"] == "spot" else {},
        source=f"AWS's Price List of today, {target.region}",
        notes=(note,) if lacking else (),
    )


def _find(target: Target, queries: Mapping[str, _Query]) -> dict[str, float]:
    """The prices by the queries' names, without those that are not clear."""
    client = replace(aws.of(target.settings), region=ASKED_IN).client("pricing", **LIMITS)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = threads.map(lambda query: _products(client, query, target.region), queries.values())
        prices = {name: _price(query, found) for (name, query), found in zip(queries.items(), answers, strict=True)}
    return {name: price for name, price in prices.items() if price is not None}


def _products(client: Any, query: _Query, region: str) -> list[str]:
    """Everything that the filters leave; nothing where that is too much to be one product."""
    wanted = {"regionCode": region, **query.filters}
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()]
    pages = client.get_paginator("get_products").paginate(
        ServiceCode=query.service, Filters=filters, FormatVersion="aws_v1"
    )
    read = list(islice(pages, MOST_PAGES + 1))
    return [] if len(read) > MOST_PAGES else [each for page in read for each in page.get("PriceList") or ()]


def _price(query: _Query, products: Iterable[str]) -> float | None:
    """What the products that are meant cost; None where there are none, or several prices, or one that is not clear."""
    try:
        found = {
            _first_paid(term["priceDimensions"].values(), unit=query.unit)
            for product in map(json.loads, products)
            if query.means(product["product"]["attributes"]["usagetype"])
            for term in product["terms"]["OnDemand"].values()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return found.pop() if len(found) == 1 else None


def _first_paid(tiers: Iterable[Mapping[str, Any]], *, unit: str) -> float:
    """The price of the lowest tier that is not free. Raises KeyError without US dollars, and ValueError."""
    for tier in sorted(tiers, key=lambda each: float(each["beginRange"])):
        if tier["unit"].lower() != unit.lower():
            raise ValueError(f"{tier['unit']} is not {unit}")
        price = float(tier["pricePerUnit"]["USD"])
        if not math.isfinite(price) or price < 0:
            raise ValueError(f"{price} is no price")
        if price:
            return price
    raise ValueError("every tier is free")


def _spot_hour(target: Target, kind: str) -> dict[str, float]:
    """The mean of the zones' prices at this moment, by type; empty where EC2 does not say."""
    ec2 = replace(aws.of(target.settings), region=target.region).client("ec2", **LIMITS)
    now = datetime.now(UTC)
    try:
        history = ec2.describe_spot_price_history(
            InstanceTypes=[kind], ProductDescriptions=["Linux/UNIX"], StartTime=now, EndTime=now
        )["SpotPriceHistory"]
        by_age = sorted(history, key=lambda each: each["Timestamp"])
        newest = {each["AvailabilityZone"]: float(each["SpotPrice"]) for each in by_age}
    except (BotoCoreError, ClientError, ResponseParserError, KeyError, ValueError):
        return {}
    prices = [price for price in newest.values() if math.isfinite(price) and price > 0]
    return {kind: fmean(prices)} if prices else {}
