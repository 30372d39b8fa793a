"""Where an HTTP request comes from: this machine, through a proxy, or from another site's page.

What needs no password or key on the loopback must still not be open to every page that the user happens to have open:
a browser on this machine is a peer on the loopback, too. It may be made to send requests here by another site's page
(cross-site request forgery), and may even believe that this server is that site, when the site's name suddenly means
our address (DNS rebinding). Browsers tell of the first in `Sec-Fetch-Site` and `Origin`, of the second in `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

PROXY_HEADERS = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip")


def address_of(peer: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A peer's IP address; None if it is none (a Unix socket's)."""
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def came_by_proxy(header_names: Iterable[str]) -> bool:
    """Whether a request has a header of a proxy's: then its peer is the proxy, whoever sent it."""
    return any(name.title() in PROXY_HEADERS for name in header_names)


def names_loopback(host: str) -> bool:
    """Whether a `Host` header (`name:port`) is one of the loopback's own names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_cross_site(*, host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Whether another site's page is behind a request; the arguments are the values of its headers."""
    if (fetch_site or "none") not in ("same-origin", "none"):
        return True
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc != host
    except ValueError:
        return True
