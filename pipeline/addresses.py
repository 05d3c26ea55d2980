"""
Which addresses may be called when somebody else chose them. Pure: no name is resolved here.

Sources: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry; the table is ours
because Python's `is_global` differs between its patch releases, and takes 6to4 and NAT64 for public.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

Network = IPv4Network | IPv6Network

_LOOPBACK = "a loopback address"
_PRIVATE = "a private address"
_LINK_LOCAL = "a link-local address"
_RESERVED = "an address of nobody on the internet"
_METADATA = "an address of the platform's own services"

_CLOSED: Sequence[tuple[Network, str]] = [
    (ip_network(network), what)
    for what, networks in {
        _LOOPBACK: "127.0.0.0/8 ::1/128",
        _PRIVATE: "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
        _LINK_LOCAL: "169.254.0.0/16 fe80::/10",
        _METADATA: "168.63.129.16/32",  # Azure's, of all clouds' the only one among public addresses
        "a tunnel's address": "2002::/16 2001::/32 64:ff9b:1::/48",  # 6to4, Teredo, local NAT64: to an IPv4 one within
        "a multicast address": "224.0.0.0/4 ff00::/8",
        _RESERVED: "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24"
        " 240.0.0.0/4 2001::/23 2001:db8::/32 3fff::/20",
    }.items()
    for network in networks.split()
]
_UNICAST = IPv6Network("2000::/3")  # all that was ever given to anybody
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")

_INTERNAL = (".local", ".localhost", ".localdomain", ".internal", ".lan", ".home.arpa")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]*)?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_UNSENDABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SPACED_HOST = re.compile(r"[^/]*+/*+[^/?#\s]*+\s")
_PLAIN = re.compile(r"[\x21-\x7e]*")
_LONGEST_NAME = 253
_LONGEST_SHOWN = 200


def parse(url: str) -> URL:
    """
    Read an address as it will be called; what is percent-encoded stays so, for it may be signed.

    Raises:
        ValueError: It must be written otherwise; the text goes on after "the address", and shows no part of it but
            its host.
    """
    if _UNSENDABLE.search(url):
        raise ValueError("must have no control characters")
    if _SPACED_HOST.match(url):
        raise ValueError("must name a host")
    try:
        parsed = URL(url, encoded=_PLAIN.fullmatch(url) is not None)
        port = parsed.port
    except ValueError:
        raise ValueError("must be an http:// or https:// address") from None
    if parsed.scheme not in {"http", "https"} or not parsed.raw_authority:
        raise ValueError("must be an http:// or https:// address")
    if "@" in parsed.raw_authority:
        raise ValueError("must have no credentials")
    if "%" in parsed.raw_authority:
        raise ValueError("must name its host without percent signs, and without a zone")
    if not _AUTHORITY.fullmatch(parsed.raw_authority) or not parsed.raw_host:
        raise ValueError("must name a host")
    if not port:
        raise ValueError("must have a port from 1 to 65535")
    return parsed


def address_problem(url: str, allow: Sequence[Network] = ()) -> str | None:
    """
    What is wrong with calling *url*, as far as can be known without asking DNS; None: nothing.

    It goes on after "the address". *allow* are networks that may be called though they are not public.
    """
    try:
        return host_problem(parse(url).raw_host or "", allow)
    except ValueError as problem:
        return str(problem)


def host_problem(host: str, allow: Sequence[Network] = ()) -> str | None:
    """Like `address_problem`, of a host alone: a name, or an IP address in any notation."""
    try:
        return ip_problem(ip_address(host), allow)
    except ValueError:
        pass
    name = host.removesuffix(".").lower()
    labels = name.split(".")
    if ":" in name or len(name) > _LONGEST_NAME or not all(0 < len(label) < 64 for label in labels):
        return "must name a host"
    if _NUMBER.fullmatch(labels[-1]):  # C libraries take 2130706433, 0x7f.1 and 0177.0.0.1 for 127.0.0.1
        return "must write its IPv4 address as four decimal numbers"
    if name == "localhost" or name.endswith(".localhost"):
        return None if _is_allowed(IPv4Address("127.0.0.1"), allow) else f"must not lead to {name}, this machine itself"
    if not allow and (len(labels) == 1 or name.endswith(_INTERNAL)):  # else DNS tells whether it is one of theirs
        return f"must not lead to {name}, a name of a private network"
    return None


def ip_problem(address: IPv4Address | IPv6Address, allow: Sequence[Network] = ()) -> str | None:
    """Like `address_problem`, of an IP address; one that wraps an IPv4 address is judged by that."""
    inner = _within(address)
    what = next((what for network, what in _CLOSED if inner in network), None)
    if what is None and isinstance(inner, IPv6Address) and inner not in _UNICAST:
        what = _RESERVED
    if what is None or _is_allowed(inner, allow):
        return None
    return f"must not lead to {address}, {what}" if inner == address else f"must not lead to {address}: {inner}, {what}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, by its name or its IP address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def shown(url: str) -> str:
    """An address for logs and records: its scheme, host and path, for query and credentials are often secrets."""
    try:
        parsed = URL(url, encoded=True)
        host, port = parsed.raw_host or "", parsed.explicit_port
    except ValueError:
        return "an unreadable address"
    if parsed.scheme not in {"http", "https"}:
        return f"{parsed.scheme[:20]}:…"
    text = f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{parsed.raw_path}"
    clean = text.encode("ascii", "backslashreplace").decode()
    clean = _UNSENDABLE.sub("?", clean)
    return clean if len(clean) <= _LONGEST_SHOWN else f"{clean[:_LONGEST_SHOWN]}…"


def _within(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and (address in _MAPPED or address in _NAT64):
        return IPv4Address(address.packed[-4:])
    return address


def _is_allowed(address: IPv4Address | IPv6Address, allow: Sequence[Network]) -> bool:
    return any(address in network for network in allow)
