"""Which addresses may be called: every notation of what is private, and nothing that is public."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.addresses import Network, address_problem, is_loopback, shown

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1")]

PRIVATE = """
    0.0.0.0 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 169.254.170.2
    172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255
    [::] [::1] [::127.0.0.1] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:a00:1] [::ffff:0:127.0.0.1]
    [64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::1] [100::1] [2001::1] [2001:db8::1] [2001:20::1]
    [2002:7f00:1::] [2002:808:808::1] [3fff::1] [5f00::1] [fc00::1] [fd00:ec2::254] [fe80::1] [fec0::1] [ff02::1]
""".split()  # noqa: SIM905 - a table to be read

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 128.0.0.1 168.63.129.15 169.253.255.255
    172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 223.255.255.255
    [2606:4700::1111] [2a00:1450:4001::200e] [64:ff9b::808:808] [::ffff:8.8.8.8] [2001:4860:4860::8888]
    shop.example.com shop.example.com. xn--bcher-kva.de a_b.example.com 1.2.3.4.example.com 0x7f.example.com
""".split()  # noqa: SIM905 - a table to be read

OTHER_NOTATIONS = """
    2130706433 0 1 4294967295 0x7f000001 0X7F000001 017700000001 0177.0.0.1 0x7f.0.0.1 0x7f.1 127.1 127.0.1 127.0.0.1.
    127.0.0.01 00000177.0.0.1 1.2.3.4.5 256.1.1.1 1.1.1.256 08.8.8.8 0x 8.8.2056 134744072
    shop.1 shop.0x7f １２７.0.0.1 127。0。0。1 ①②⑦.⓪.⓪.①
""".split()  # noqa: SIM905 - a table to be read

MALFORMED = [
    *(
        "",
        "shop.example.com",
        "//shop.example.com/",
        "http:",
        "http://",
        "http:///x",
        "http:/x",
        "http:shop.example.com",
    ),
    *("ftp://shop.example.com/", "file:///etc/passwd", "gopher://shop.example.com/", "javascript:alert(1)"),
    *("data:text/plain,x", "unix:///run/docker.sock", "https+unix://x/", "ws://shop.example.com/"),
    *("http://me@shop.example.com/", "http://me:secret@shop.example.com/", "http://@shop.example.com/"),
    *("http://shop.example.com@127.0.0.1/", "http://127.0.0.1@shop.example.com/", "http://a@b@shop.example.com/"),
    *("http://shop.example.com:0/", "http://shop.example.com:65536/", "http://shop.example.com:99999/"),
    *("http://shop.example.com:-1/", "http://shop.example.com:+80/", "http://shop.example.com:x/"),
    *("http://shop.example.com: 80/", "http://shop.example.com :80/", "http:// shop.example.com/"),
    *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%25]/", "http://[::1", "http://::1/"),
    *("http://[v1.x]/", "http://[]/", "http://[127.0.0.1]/", "http://[::1]x/"),
    *("http://%31%32%37.0.0.1/", "http://a%2fb.com/", "http://a%00.com/", "http://a,b.com/", "http://a..com/"),
    *("http://.com/", "http://./", "http://a\\@b.com/", "http://shop.example.com\\@127.0.0.1/", "http://a b.com/"),
    *("http://shop.example.com/\r\nX-Evil: 1", "http://shop.example.com/\0", "http://shop.example.com/\ud800"),
    *("http://" + "a" * 64 + ".com/", "http://" + "a." * 127 + "com/", "http://ho\u00adst.com/"),
]

INTERNAL = ["localhost", "LOCALHOST", "localhost.", "a.localhost", "db", "db.", "db.local", "db.internal", "nas.lan"]
INTERNAL += ["x.localdomain", "x.home.arpa", "metadata.google.internal", "ｌocalhost", "ⓛocalhost", "localhost。"]


@pytest.mark.parametrize("host", [*PRIVATE, *INTERNAL])
def test_what_is_not_public_is_not_called(host: str) -> None:
    """Of every special network a representative, those wrapped in an IPv6 address too; and names that need no DNS."""
    problem = address_problem(f"https://{host}:8443/hook?token=1")
    assert problem
    assert problem.startswith("must not lead to ")
    assert "token" not in problem


@pytest.mark.parametrize("host", PUBLIC)
def test_what_is_public_is_called(host: str) -> None:
    """The neighbours of the special networks, and names that only look like numbers."""
    assert address_problem(f"https://{host}/") is None
    assert address_problem(f"HTTP://{host.upper()}:65535?x=/@:#") is None


@pytest.mark.parametrize("host", OTHER_NOTATIONS)
@pytest.mark.parametrize("allow", [(), LOOPBACK])
def test_an_ipv4_address_is_written_in_one_way(host: str, allow: Sequence[Network]) -> None:
    """C libraries and browsers read these as addresses, each in its own way; so nobody is asked to."""
    problem = address_problem(f"http://{host}/", allow)
    if host.isascii():
        assert problem == "must write its IPv4 address as four decimal numbers"
    else:  # these are 127.0.0.1, and nothing else, to everybody who normalises names
        assert (problem is None) == bool(allow)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_two_parsers_could_read_differently_is_not_called(url: str) -> None:
    """Whatever is allowed: the part that was checked must be the part that is called."""
    assert address_problem(url, [ip_network("0.0.0.0/0"), ip_network("::/0")])


def test_networks_that_are_opened_are_called() -> None:
    """Development and private networks: by address, wrapped, by name; and nothing else is opened with them."""
    for host in ("127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "a.localhost", "db", "db.local"):
        assert address_problem(f"http://{host}/", LOOPBACK) is None, host
    for host in ("10.0.0.1", "169.254.169.254", "[fe80::1]", "[::]", "0.0.0.0"):
        assert address_problem(f"http://{host}/", LOOPBACK), host
    assert address_problem("http://localhost/", [ip_network("10.0.0.0/8")])


@given(st.integers(0, 2**32 - 1))
@example(0x7F000001)
def test_every_ipv4_address_is_judged_alike_in_each_wrapping(number: int) -> None:
    """Mapped and NAT64 addresses lead to the IPv4 address within; 6to4 leads nowhere any more."""
    plain = IPv4Address(number)
    fine = address_problem(f"http://{plain}/") is None
    for prefix in (0xFFFF << 32, 0x64FF9B << 96):
        assert (address_problem(f"http://[{IPv6Address(prefix | number)}]/") is None) == fine
    assert address_problem(f"http://[{IPv6Address((0x2002 << 112) | number << 80)}]/")
    if fine:  # nothing is called that Python takes for private
        assert plain.is_global
        assert not plain.is_multicast
    for other in (f"{number}", f"{number:#x}", f"0{number:o}", f"{number >> 24}.{number & 0xFFFFFF}"):
        assert address_problem(f"http://{other}/")


@given(st.integers(0, 2**128 - 1))
@example(1)
def test_no_ipv6_address_is_called_that_python_takes_for_private(number: int) -> None:
    """Two tables, made apart from one another."""
    address = IPv6Address(number)
    if address_problem(f"http://[{address}]/") is None:
        assert address.is_global
        assert not address.is_multicast


hostile = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.builds("http{}".format, st.text(st.characters(exclude_categories=()))),
    st.from_regex(re.compile(r"https?://[\[\]@:%./\\a-f0-9x?#-]{0,40}"), fullmatch=True),
)


@given(hostile)
@example("http://[")
@example("http://a:b:c@[::1]:x/\ud800?secret")
def test_nothing_crashes_and_nothing_odd_is_shown(url: str) -> None:
    """Locations of redirects come from strangers too; what is shown goes into logs, records and terminals."""
    address_problem(url)
    text = shown(url)
    assert len(text) <= 210
    assert text.isprintable()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://me:secret@shop.example.com:8443/a/b?token=1#f", "https://shop.example.com:8443/a/b"),
        ("https://shop.example.com", "https://shop.example.com/"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://shop.example.com/" + "a" * 500, "http://shop.example.com/" + "a" * 176 + "…"),
        ("file:///etc/passwd", "file:…"),
        ("data:text/plain;base64,c2VjcmV0", "data:…"),
        ("http://[", "an unreadable address"),
    ],
)
def test_what_is_shown_of_an_address(url: str, text: str) -> None:
    """Signed addresses and those with a token in their query are secrets; the rest tells which one it was."""
    assert shown(url) == text


def test_this_machine_is_known_by_name_and_by_number() -> None:
    """The provider's address decides by it whether this is development."""
    assert all(is_loopback(host) for host in ("localhost", "a.localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_loopback(host) for host in ("", "10.0.0.1", "localhost.example.com", "api.wavespeed.ai"))
