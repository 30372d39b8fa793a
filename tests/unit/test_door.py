"""The one rule for every port: what comes from this machine, and what does not (rows S1, S3, S4, S8, S14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_sqs.door import Reason, came_by_proxy, is_loopback_url, names_loopback, no_proxy, reason_against

HOST = ("Host", "127.0.0.1:8000")


def reason(
    *headers: tuple[str, str], peer: str | None = "127.0.0.1", version: str = "HTTP/1.1", **options: bool
) -> Reason | None:
    return reason_against(peer=peer, version=version, headers=headers, **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:5555", "LOCALHOST", "127.8.9.1", "[::1]:1"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"])
def test_a_program_of_this_machine(peer: str, host: str) -> None:
    assert reason(("Host", host), ("User-Agent", "curl/8.5.0"), ("Accept", "*/*"), peer=peer) is None


@pytest.mark.parametrize("peer", ["192.168.1.2", "::ffff:10.0.0.1", "203.0.113.7", "fe80::1%eth0", "", None, "unix:"])
def test_another_machine(peer: str | None) -> None:
    assert reason(HOST, peer=peer) is Reason.PEER


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1/x",
        "127.0.0.1/",
        "127.0.0.1?x",
        "127.0.0.1#x",
        "user@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.0.0.1:8000:8000",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:123456",
        "127.0.0.256",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0:8000",
        "[::]:8000",
        "::1",
        "[::1",
        "[::ffff:127.0.0.1]",
        "localhost.",
        "evil.localhost",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example",
        "192.168.1.2",
        " 127.0.0.1",
        "127.0.0.1\n",
        "127.0.0.1, evil.example",
        "\uff11\uff12\uff17.0.0.1",
        "",
    ],
)
def test_a_host_that_is_not_a_name_of_the_loopbacks(host: str) -> None:
    """S14: `127.0.0.1/x` was one."""
    assert not names_loopback(host)
    assert reason(("Host", host)) is Reason.HOST


@given(st.text(max_size=40))
def test_no_text_around_it_makes_a_name_of_the_loopbacks(text: str) -> None:
    if text and not text.isascii():
        assert not names_loopback(f"127.0.0.1{text}")
    assert not names_loopback(f"{text}.example")


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        ("http://127.0.0.1:4566", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/", True),
        ("http://127.0.0.1@evil.example/", False),
        ("http://evil.example/127.0.0.1", False),
        ("http://[", False),
        ("127.0.0.1", False),
    ],
)
def test_no_credential_of_a_start_goes_to_another_host(url: str, is_ours: bool) -> None:
    assert is_loopback_url(url) is is_ours


@pytest.mark.parametrize(
    ("environ", "hosts"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"no_proxy": "a.example, localhost"}, "a.example,localhost,127.0.0.1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example,a.example"}, "a.example,b.example,127.0.0.1,localhost"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_no_proxy_is_asked_for_this_machine_and_what_the_user_excepted(environ: dict[str, str], hosts: str) -> None:
    """What stood in no_proxy alone, as most tools write it, was lost."""
    assert no_proxy(environ) == {"no_proxy": hosts, "NO_PROXY": hosts}


def test_a_request_without_a_host_or_with_two() -> None:
    assert reason(("Accept", "*/*")) is Reason.HOST
    assert reason(HOST, ("host", "evil.example")) is Reason.HOST
    assert reason(HOST, HOST) is Reason.HOST


PROXIES = [
    "Forwarded",
    "Via",
    "Max-Forwards",
    "Proxy-Connection",
    "Proxy-Authorization",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Client-Cert",
    "X-Forwarded",
    "X-Forward-For",
    "Forwarded-For",
    "Forwarded-Proto",
    "X-Real-Ip",
    "X-Real-Port",
    "X-Client-Ip",
    "X-Client-Cert",
    "Client-Ip",
    "X-Proxy-User-Ip",
    "X-ProxyUser-Ip",
    "X-Cluster-Client-Ip",
    "X-Original-Url",
    "X-Original-Host",
    "X-Original-Forwarded-For",
    "X-Originating-Ip",
    "X-Remote-Ip",
    "X-Remote-Addr",
    "X-Remote-User",
    "Remote-User",
    "Remote-Addr",
    "Remote-Groups",
    "X-Envoy-External-Address",
    "X-Envoy-Expected-Rq-Timeout-Ms",
    "X-Scheme",
    "X-Url-Scheme",
    "Front-End-Https",
    "X-Ssl",
    "X-Nginx-Proxy",
    "X-Traefik-Router",
    "X-Auth-Request-User",
    "X-Authentik-Username",
    "X-Pomerium-Jwt-Assertion",
    "Cf-Connecting-Ip",
    "Cf-Ray",
    "Cf-Visitor",
    "Cf-Ipcountry",
    "Cf-Warp-Tag-Id",
    "Cdn-Loop",
    "True-Client-Ip",
    "Fastly-Client-Ip",
    "Fastly-Ssl",
    "Fly-Client-Ip",
    "Fly-Region",
    "Akamai-Origin-Hop",
    "X-Akamai-Edgescape",
    "X-Edge-Ip",
    "X-Amz-Cf-Id",
    "X-Amzn-Trace-Id",
    "X-Amzn-Oidc-Data",
    "X-Azure-Clientip",
    "X-Azure-Socketip",
    "X-Azure-Fdid",
    "X-Arr-Log-Id",
    "X-Arr-Ssl",
    "Disguised-Host",
    "X-Ms-Proxy",
    "X-Appengine-User-Ip",
    "X-Appengine-Country",
    "X-Google-Real-Ip",
    "X-Cloud-Trace-Context",
    "X-Goog-Iap-Jwt-Assertion",
    "Tailscale-User-Login",
    "Tailscale-User-Name",
    "Ngrok-Skip-Browser-Warning",
    "Ngrok-Agent-Ips",
    "X-Nf-Client-Connection-Ip",
    "X-Vercel-Forwarded-For",
    "X-Replit-User-Id",
    "Incap-Client-Ip",
    "X-Sucuri-Clientip",
    "Sozu-Id",
    "X-Coming-From",
    "X-Bluecoat-Via",
    "X-Varnish",
    "X-Squid-Error",
    "X-Haproxy-Server-State",
]
"""What nginx, Apache, Caddy, Traefik, HAProxy, Envoy, Varnish, Squid, CDNs, clouds and tunnels are known to add."""


@pytest.mark.parametrize("header", PROXIES)
def test_a_proxys_header(header: str) -> None:
    """S3: sixteen of these were unknown."""
    for spelling in (header, header.lower(), header.upper()):
        assert reason(HOST, (spelling, "")) is Reason.PROXY


ORDINARY = [
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Authorization",
    "Cache-Control",
    "Connection",
    "Content-Length",
    "Content-Type",
    "Cookie",
    "Expect",
    "If-Match",
    "If-None-Match",
    "Keep-Alive",
    "Pragma",
    "Prefer",
    "Priority",
    "Range",
    "Referer",
    "Te",
    "Traceparent",
    "Tracestate",
    "Transfer-Encoding",
    "Upgrade-Insecure-Requests",
    "User-Agent",
    "X-Request-Id",
    "X-Requested-With",
    "X-Csrftoken",
    "X-Xsrftoken",
    "X-Api-Key",
    "Postman-Token",
    "X-Prometheus-Scrape-Timeout-Seconds",
    "X-Amz-Date",
    "X-Amz-Target",
    "X-Amz-Content-Sha256",
    "X-Amz-Security-Token",
    "X-Amz-Acl",
    "X-Amz-Copy-Source",
    "X-Amz-Checksum-Crc32",
    "X-Amzn-Query-Mode",
    "Amz-Sdk-Invocation-Id",
    "Amz-Sdk-Request",
    "Sec-Ch-Ua",
    "Sec-Gpc",
    "Dnt",
    "Idempotency-Key",
    "B3",
    "X-B3-Traceid",
    "Baggage",
    "Uber-Trace-Id",
]


def test_what_programs_browsers_and_boto3_send_is_no_proxys() -> None:
    assert [header for header in ORDINARY if came_by_proxy([header])] == []
    assert reason(HOST, *((header, "x") for header in ORDINARY)) is None


def test_http_1_0_with_a_host_is_what_nginx_sends() -> None:
    """S3: nginx's own default, which adds no header."""
    assert reason(HOST, ("Connection", "close"), version="HTTP/1.0") is Reason.PROXY


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "something new"},
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://127.0.0.1:8000.evil.example"},
        {"Origin": "http://127.0.0.1:8000@evil.example"},
        {"Origin": "http://["},
        {"Origin": "ftp://127.0.0.1:8000"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_sites_page(headers: dict[str, str]) -> None:
    assert reason(HOST, *headers.items()) is Reason.PAGE


def test_its_own_page_where_there_is_one() -> None:
    own = (("Origin", "http://127.0.0.1:8000"), ("Sec-Fetch-Site", "same-origin"))
    assert reason(HOST, *own) is None
    assert reason(HOST, ("Sec-Fetch-Site", "none")) is None
    for each in own:
        assert reason(HOST, each, pages=False) is Reason.PAGE
    assert reason(HOST, ("Sec-Fetch-Site", "none"), pages=False) is None


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.168.1.2", "::ffff:172.16.0.1", "fd00::1"])
def test_a_private_network_where_that_is_wanted(peer: str) -> None:
    """S8: a scraper elsewhere in the VPC, by whatever name."""
    host = ("Host", "web.internal:8001")
    assert reason(host, peer=peer, network=True) is None
    assert reason(host, peer=peer) is Reason.PEER
    assert reason(host, ("X-Forwarded-For", "203.0.113.7"), peer=peer, network=True) is Reason.PROXY
    assert reason(host, ("Sec-Fetch-Site", "same-origin"), peer=peer, network=True, pages=False) is Reason.PAGE
    assert reason(host, peer="8.8.8.8", network=True) is Reason.PEER
    assert reason(host, peer="127.0.0.1", network=True) is Reason.HOST
