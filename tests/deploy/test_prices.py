"""A stack's cost at today's prices: AWS's Price List over HTTP, its bad answers, and when it cannot be asked."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from faceapp.config import Settings
from faceapp.deploy import cost, prices, show, template
from faceapp.deploy.prices import KNOWN_SINCE, Prices
from faceapp.deploy.target import Target
from tests.support.aws import ACCESS
from tests.support.price_list import PriceList, catalogue, price_list, product

REGION = "eu-central-1"
DEFAULTS = {**template.parameters(), "WebImage": "ami-1", "WorkerImage": "ami-1"}
SPOT = {**DEFAULTS, "WorkerMarket": "spot"}
VOLUME = {"regionCode": REGION, "usagetype": "EUC1-EBS:VolumeUsage.gp3", "volumeApiName": "gp3"}


def target(region: str = REGION, **more: str) -> Target:
    return Target(settings=Settings(prefix="priced"), region=region, account="123456789012", **more)


def asked_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    here = {"AWS_ENDPOINT_URL_PRICING": url, "AWS_ENDPOINT_URL_EC2": url, "NO_PROXY": "127.0.0.1"}
    for name, value in {**ACCESS, **here, "AWS_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceList]:
    with price_list(catalogue(REGION, "EUC1-")) as found:
        asked_at(found.url, monkeypatch)
        yield found


@pytest.mark.parametrize(
    ("region", "prefix", "sqs"), [(REGION, "EUC1-", "Requests-Tier1"), ("us-east-1", "", "Requests-RBP")]
)
def test_every_price_is_that_of_the_stacks_own_region(
    region: str, prefix: str, sqs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = catalogue("ap-south-1", "APS3-")
    for each in elsewhere:
        for term in each["terms"]["OnDemand"].values():
            for dimension in term["priceDimensions"].values():
                dimension["pricePerUnit"] = {"USD": "99"}
    with price_list([*elsewhere, *catalogue(region, prefix, sqs=sqs)]) as served:
        asked_at(served.url, monkeypatch)
        found = prices.ask(target(region), DEFAULTS)
    assert found == Prices(
        instance_hour={"t3a.small": 0.02, "c7a.medium": 0.06},
        address_hour=0.006,
        volume_gb_month=0.09,
        s3_gb_month=0.0245,
        s3_put=0.0000054,
        s3_get=0.00000043,
        sqs_request=0.0000005,
        sns_publish=0.0000006,
        alarm_month=0.12,
        metric_month=0.31,
        source=f"AWS's Price List of today, {region}",
    )


def test_the_estimate_is_of_these_prices_and_says_so(served: PriceList) -> None:
    found = cost.estimate(DEFAULTS, prices.ask(target(), DEFAULTS))
    assert cost.total(found.busy_hour) == pytest.approx(15 * (0.06 + 0.006))
    assert found.idle_month["EC2 web-instance"] == pytest.approx(730 * (0.02 + 0.006))
    assert found.idle_month["EBS"] == pytest.approx(16 * 12 * 0.09)
    text = io.StringIO()
    Console(file=text, width=200).print(show.estimate(found))
    assert "Estimated cost (AWS's Price List of today, eu-central-1)" in text.getvalue()
    assert KNOWN_SINCE not in text.getvalue()


def volume(price: str = "0.09", unit: str = "GB-Mo", currency: str = "USD", begin: str = "0") -> dict[str, Any]:
    return product("AmazonEC2", VOLUME, (begin, price), unit=unit, currency=currency, family="Storage")


BAD_ANSWERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "another currency": [volume(currency="CNY")],
    "several products of different prices": [volume("0.09"), volume("0.1")],
    "another unit": [volume(unit="Hrs")],
    "no number": [volume("free")],
    "not a number": [volume("NaN")],
    "less than nothing": [volume("-0.09")],
    "only free tiers": [volume("0")],
    "a tier that begins nowhere": [volume(begin="")],
    "no terms": [{**volume(), "terms": {}}],
    "terms that are a list": [{**volume(), "terms": {"OnDemand": []}}],
    "no JSON": [{**volume(), "raw": "<html>"}],
    "JSON of another kind": [{**volume(), "raw": "[]"}],
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_price_that_is_not_clear_is_taken_from_the_table_and_named(
    answer: list[dict[str, Any]], served: PriceList
) -> None:
    others = [each for each in served.products if each["product"]["attributes"]["usagetype"] != VOLUME["usagetype"]]
    served.products = [*others, *answer]
    found = prices.ask(target(), DEFAULTS)
    assert found.volume_gb_month == Prices().volume_gb_month
    assert (found.alarm_month, found.instance_hour["c7a.medium"]) == (0.12, 0.06)
    assert found.notes == (f"AWS's Price List gives no one price for EBS: taken from {KNOWN_SINCE}.",)


def test_several_products_of_one_price_are_that_price(served: PriceList) -> None:
    served.products.append(volume("0.0900000000"))
    found = prices.ask(target(), DEFAULTS)
    assert (found.volume_gb_month, found.notes) == (0.09, ())


def test_an_instance_type_that_is_not_sold_there_has_no_price_of_elsewhere(served: PriceList) -> None:
    served.products = [each for each in served.products if "c7a.medium" not in str(each)]
    found = cost.estimate(DEFAULTS, prices.ask(target(), DEFAULTS))
    assert "No price is known here for c7a.medium: not counted." in found.notes
    assert cost.total(found.busy_hour) == pytest.approx(15 * 0.006)


DENIED = (400, '{"__type": "AccessDeniedException", "Message": "not authorized to perform: pricing:GetProducts"}')


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (DENIED, "not authorized to perform: pricing:GetProducts"),
        ((400, '{"__type": "UnrecognizedClientException", "Message": "The security token is invalid."}'), "token"),
        ((400, '{"__type": "ThrottlingException", "Message": "Rate exceeded"}'), "Rate exceeded"),
        ((500, "<html>"), "could not be asked"),
        ((200, "<html>not AWS</html>"), "has no prices of eu-central-1"),
        ((200, "{}"), "has no prices of eu-central-1"),
    ],
)
def test_where_it_cannot_be_asked_the_table_is_taken_and_one_sentence_says_why(
    answer: tuple[int, str], reason: str, served: PriceList
) -> None:
    served.instead["GetProducts"] = answer
    check_table(prices.ask(target(), DEFAULTS), reason)


def check_table(found: Prices, reason: str) -> None:
    [note] = found.notes
    assert note.startswith("AWS's Price List ")
    assert reason in note
    assert note.endswith(f": these are prices of {KNOWN_SINCE}.")
    assert "\n" not in note
    assert found == Prices(notes=found.notes)
    assert KNOWN_SINCE in found.source


def test_nothing_that_listens_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        # Bound, and it does not listen.
        taken.bind(("127.0.0.1", 0))
        asked_at(f"http://127.0.0.1:{taken.getsockname()[1]}", monkeypatch)
        check_table(prices.ask(target(), DEFAULTS), "Could not connect")


def test_an_answer_that_does_not_come_is_not_waited_for(served: PriceList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prices.LIMITS, "read_timeout", 0.3)
    served.silent.clear()
    check_table(prices.ask(target(), DEFAULTS), "Read timeout")


def test_an_answer_without_end_is_not_read_to_it(served: PriceList) -> None:
    """Of a thousand pages the first ones agree, and the others may not."""
    served.products += [volume("0.09")] * 1000
    assert prices.ask(target(), DEFAULTS).volume_gb_month == Prices().volume_gb_month


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ("cn-north-1", "has no prices in US dollars that can be asked for from cn-north-1"),
        ("us-gov-west-1", "has no prices in US dollars that can be asked for from us-gov-west-1"),
        ("nowhere", "Unknown region: 'nowhere'"),
    ],
)
def test_another_partition_is_not_asked(region: str, reason: str, served: PriceList) -> None:
    served.instead["GetProducts"] = DENIED
    check_table(prices.ask(target(region), DEFAULTS), reason)


def test_an_aws_on_this_machine_is_not_asked(served: PriceList) -> None:
    served.instead["GetProducts"] = DENIED
    check_table(prices.ask(target(endpoint="http://127.0.0.1:4566"), SPOT), "is not asked for an AWS on this machine")


def test_the_spot_price_is_the_mean_of_the_zones_newest(served: PriceList) -> None:
    served.spot = [
        ("eu-central-1a", "0.020000", "2026-11-30T10:00:00.000Z"),
        ("eu-central-1a", "0.050000", "2026-11-29T10:00:00.000Z"),
        ("eu-central-1b", "0.030000", "2026-11-30T09:00:00.000Z"),
    ]
    found = prices.ask(target(), SPOT)
    assert found.spot_hour == {"c7a.medium": pytest.approx(0.025)}
    costs = cost.estimate(SPOT, found)
    assert costs.busy_hour["EC2 workers"] == pytest.approx(15 * (0.025 + 0.006))
    assert not [each for each in costs.notes if "spot" in each.lower()]
    assert prices.ask(target(), DEFAULTS).spot_hour == {}


REFUSED = (
    403,
    "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors></Response>",
)


@pytest.mark.parametrize(
    ("instead", "price"),
    [(REFUSED, "0.02"), ((200, "<html"), "0.02"), (None, "free"), (None, "0"), (None, "nan")],
    ids=["refused", "no XML", "free", "0", "nan"],
)
def test_a_spot_price_that_is_not_known_is_a_share_and_named(
    instead: tuple[int, str] | None, price: str, served: PriceList
) -> None:
    served.spot = [("eu-central-1a", price, "2026-11-30T10:00:00.000Z")]
    if instead:
        served.instead["DescribeSpotPriceHistory"] = instead
    found = prices.ask(target(), SPOT)
    assert (found.spot_hour, found.source) == ({}, "AWS's Price List of today, eu-central-1")
    costs = cost.estimate(SPOT, found)
    assert costs.busy_hour["EC2 workers"] == pytest.approx(15 * (0.35 * 0.06 + 0.006))
    assert "The spot price, which changes by the hour, is taken as 35 % of the on-demand price." in costs.notes
