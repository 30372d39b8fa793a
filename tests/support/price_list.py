"""A little Price List (and EC2's spot prices) on the loopback, with answers in the shape of AWS's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Tier = tuple[str, str]
"""Where it begins, and the price."""


def product(
    service: str, attributes: Mapping[str, str], *tiers: Tier, unit: str, currency: str = "USD", family: str = ""
) -> dict[str, Any]:
    """One entry of a PriceList, as it is before it is made a string."""
    sku = "9ZEEF2ZCH5FHYSFK"
    ends = [begin for begin, _ in tiers[1:]] + ["Inf"]
    dimensions = {
        f"{sku}.JRTCKXETXF.{n}": {
            "unit": unit,
            "beginRange": begin,
            "endRange": end,
            "pricePerUnit": {currency: price},
            "rateCode": f"{sku}.JRTCKXETXF.{n}",
            "appliesTo": [],
            "description": f"{price} {currency} per {unit}",
        }
        # AWS promises no order.
        for n, ((begin, price), end) in reversed(list(enumerate(zip(tiers, ends, strict=True))))
    }
    term = {"priceDimensions": dimensions, "sku": sku, "effectiveDate": "2026-11-01T00:00:00Z", "termAttributes": {}}
    return {
        "product": {"productFamily": family, "attributes": {"servicecode": service, **attributes}, "sku": sku},
        "serviceCode": service,
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": term}},
        "version": "20261120000000",
        "publicationDate": "2026-11-20T00:00:00Z",
    }


def catalogue(region: str, prefix: str, *, sqs: str = "Requests-Tier1") -> list[dict[str, Any]]:
    """What a stack uses, and products that share a filter with it. No price is that of faceapp's own table."""

    def of(
        service: str, usage: str, *tiers: Tier, unit: str, family: str = "", short: str = prefix, **more: str
    ) -> dict[str, Any]:
        attributes = {"regionCode": region, "usagetype": f"{short}{usage}", **more}
        return product(service, attributes, *tiers, unit=unit, family=family)

    linux = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used"}
    machine = {"unit": "Hrs", "family": "Compute Instance"}
    address, sns = "VPCPublicIPv4Address", "SNS-Requests-Tier1"
    return [
        of("AmazonEC2", "BoxUsage:t3a.small", ("0", "0.02"), **machine, **linux, instanceType="t3a.small"),
        of("AmazonEC2", "BoxUsage:c7a.medium", ("0", "0.06"), **machine, **linux, instanceType="c7a.medium"),
        of(
            "AmazonEC2",
            "BoxUsage:c7a.medium",
            ("0", "0.1"),
            **machine,
            **{**linux, "operatingSystem": "Windows"},
            instanceType="c7a.medium",
        ),
        of("AmazonEC2", "UnusedBox:c7a.medium", ("0", "0.07"), **machine, **linux, instanceType="c7a.medium"),
        of("AmazonEC2", "EBS:VolumeUsage.gp3", ("0", "0.09"), unit="GB-Mo", family="Storage", volumeApiName="gp3"),
        of("AmazonEC2", "EBS:VolumeUsage.gp2", ("0", "0.11"), unit="GB-Mo", family="Storage", volumeApiName="gp2"),
        of("AmazonEC2", "EBS:VolumeP-IOPS.gp3", ("0", "0.006"), unit="IOPS-Mo", volumeApiName="gp3"),
        of(
            "AmazonVPC",
            "PublicIPv4:InUseAddress",
            ("0", "0.006"),
            unit="Hrs",
            short=prefix or "USE1-",
            group=address,
        ),
        of("AmazonVPC", "PublicIPv4:IdleAddress", ("0", "0.007"), unit="Hrs", group=address),
        of(
            "AmazonS3",
            "TimedStorage-ByteHrs",
            ("0", "0.0245"),
            ("51200", "0.0235"),
            ("512000", "0.0225"),
            unit="GB-Mo",
            family="Storage",
            volumeType="Standard",
        ),
        of("AmazonS3", "TimedStorage-SIA-ByteHrs", ("0", "0.01"), unit="GB-Mo", volumeType="Standard"),
        of("AmazonS3", "Requests-Tier1", ("0", "0.0000054"), unit="Requests", group="S3-API-Tier1"),
        of("AmazonS3", "Requests-Tier2", ("0", "0.00000043"), unit="Requests", group="S3-API-Tier2"),
        of("AWSQueueService", sqs, ("0", "0.0000005"), ("1E11", "0.0000003"), unit="Requests", queueType="Standard"),
        of("AWSQueueService", "Requests-FIFO-RBP", ("0", "0.0000006"), unit="Requests", queueType="FIFO"),
        of("AmazonSNS", "Requests-Tier1", ("0", "0"), ("1000000", "0.0000006"), unit="Requests", group=sns),
        of("AmazonCloudWatch", "CW:AlarmMonitorUsage", ("0", "0.12"), unit="Alarms", family="Alarm"),
        of("AmazonCloudWatch", "CW:HighResAlarmMonitorUsage", ("0", "0.3"), unit="Alarms", family="Alarm"),
        # One for each way to put a metric; the price is the same.
        *(
            of(
                "AmazonCloudWatch",
                "CW:MetricMonitorUsage",
                ("0", "0.31"),
                ("10000", "0.1"),
                unit="Metrics",
                family="Metric",
                operation=operation,
            )
            for operation in ("MetricStorage", "MetricStorage:AWS/EC2")
        ),
    ]


class PriceList:
    """What it answers; a test may change that at any time."""

    def __init__(self, products: Sequence[dict[str, Any]]) -> None:
        self.products: list[Any] = list(products)
        self.spot: list[tuple[str, str, str]] = []
        """Zone, price, and since when."""
        self.instead: dict[str, tuple[int, str]] = {}
        """By the operation: a status and a body."""
        self.silent = threading.Event()
        """Answers wait for this; it is set as long as they need not."""
        self.silent.set()
        self.url = ""

    def answer(self, operation: str, body: str) -> tuple[int, str]:
        self.silent.wait()
        if operation in self.instead:
            return self.instead[operation]
        return 200, self._products(json.loads(body)) if operation == "GetProducts" else self._spot()

    def _products(self, asked: Mapping[str, Any]) -> str:
        assert {each["Type"] for each in asked["Filters"]} == {"TERM_MATCH"}
        wanted = {each["Field"]: each["Value"] for each in asked["Filters"]}
        found = [each for each in self.products if _matches(each, asked["ServiceCode"], wanted)]
        # A product a page, so that whoever reads one page sees too little.
        at = int(asked.get("NextToken", 0))
        more = {"NextToken": str(at + 1)} if at + 1 < len(found) else {}
        page = [each["raw"] if "raw" in each else json.dumps(each) for each in found[at : at + 1]]
        return json.dumps({"FormatVersion": "aws_v1", "PriceList": page, **more})

    def _spot(self) -> str:
        items = "".join(
            f"<item><instanceType>c7a.medium</instanceType><productDescription>Linux/UNIX</productDescription>"
            f"<spotPrice>{price}</spotPrice><timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
            for zone, price, at in self.spot
        )
        history = f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/>"
        return f"<DescribeSpotPriceHistoryResponse>{history}</DescribeSpotPriceHistoryResponse>"


def _matches(entry: Mapping[str, Any], service: str, wanted: Mapping[str, str]) -> bool:
    attributes = {**entry["product"]["attributes"], "productFamily": entry["product"]["productFamily"]}
    return entry["serviceCode"] == service and all(attributes.get(name) == value for name, value in wanted.items())


@contextmanager
def price_list(products: Sequence[dict[str, Any]]) -> Iterator[PriceList]:
    """The server, until the block ends."""
    served = PriceList(products)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            target = self.headers.get("X-Amz-Target", "")
            status, text = served.answer(target.partition(".")[2] or "DescribeSpotPriceHistory", body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        served.silent.set()
        server.shutdown()
        server.server_close()
        thread.join()
