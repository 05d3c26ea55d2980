"""Signatures: the provider's own vectors, and that nothing a stranger sends is ever more than a refusal."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadSignature
from pipeline.signatures import TOLERANCE_S, Freshness, sign, verify, well_formed

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors/wavespeed-signatures.json").read_text())
VALID = [vector for vector in VECTORS if vector["valid"]]
INVALID = [vector for vector in VECTORS if not vector["valid"]]

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OTHER = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
NOW = 1_768_471_209
BODY = b'{"id":"e6832d4abffb4d79bfbca19783fca133","status":"completed"}'


def headers(signature: str, *, at: object = NOW, webhook_id: str = "evt_1") -> dict[str, str]:
    return {"webhook-id": webhook_id, "webhook-timestamp": str(at), "webhook-signature": signature}


def of(vector: dict[str, Any]) -> tuple[list[str], dict[str, str], bytes]:
    signed = headers(vector["webhook_signature"], at=vector["webhook_timestamp"], webhook_id=vector["webhook_id"])
    return [vector["secret"]], signed, base64.b64decode(vector["body_base64"])


@pytest.mark.parametrize("vector", VALID, ids=lambda vector: vector["name"])
def test_a_signature_of_the_provider_is_believed(vector: dict[str, Any]) -> None:
    """The vectors were computed apart from this code: prefix, key as text, raw bytes."""
    secrets, signed, body = of(vector)

    assert verify(secrets, signed, body, now=vector["valid_at"]) is Freshness.FRESH
    assert sign(secrets[0], vector["webhook_id"], vector["valid_at"], body) == vector["webhook_signature"]


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: vector["name"])
def test_a_mistaken_signature_is_refused(vector: dict[str, Any]) -> None:
    """Each is a mistake that a verifier or a forger has made."""
    secrets, signed, body = of(vector)

    with pytest.raises(BadSignature):
        verify(secrets, signed, body, now=vector["valid_at"])


@pytest.mark.parametrize(
    ("away_s", "freshness"),
    [
        (-301, Freshness.STALE),
        (-300, Freshness.FRESH),
        (0, Freshness.FRESH),
        (300, Freshness.FRESH),
        (301, Freshness.STALE),
    ],
)
def test_the_clocks_may_be_five_minutes_apart(away_s: int, freshness: Freshness) -> None:
    """A retry keeps its first timestamp: authentic still, but a hint and not a fact. A clock ahead counts alike."""
    signed = headers(sign(SECRET, "evt_1", NOW, BODY))

    assert verify([SECRET], signed, BODY, now=NOW + away_s) is freshness
    assert TOLERANCE_S == 300


@pytest.mark.parametrize("secrets", [[SECRET], [SECRET, OTHER], [OTHER, SECRET]])
def test_any_secret_of_the_list_may_have_signed(secrets: list[str]) -> None:
    """While a secret is being rotated two of them are in use."""
    assert verify(secrets, headers(sign(SECRET, "evt_1", NOW, BODY)), BODY, now=NOW) is Freshness.FRESH


@pytest.mark.parametrize("secrets", [[], [OTHER]])
def test_a_secret_not_of_the_list_may_not(secrets: list[str]) -> None:
    """And the refusal says that only the secret may be wrong: that is worth fetching it again."""
    with pytest.raises(BadSignature) as refused:
        verify(secrets, headers(sign(SECRET, "evt_1", NOW, BODY)), BODY, now=NOW)
    assert refused.value.well_formed


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_all_three_headers_are_needed(missing: str) -> None:
    """A stranger's noise is no reason to fetch the secret again."""
    signed = headers(sign(SECRET, "evt_1", NOW, BODY))
    del signed[missing]

    with pytest.raises(BadSignature) as refused:
        verify([SECRET], signed, BODY, now=NOW)
    assert not refused.value.well_formed


def test_header_names_are_the_same_in_any_case() -> None:
    """Proxies and servers rewrite them."""
    signed = {name.title(): value for name, value in headers(sign(SECRET, "evt_1", NOW, BODY)).items()}

    assert verify([SECRET], signed, BODY, now=NOW) is Freshness.FRESH


GOOD = sign(SECRET, "evt_1", NOW, BODY)


@pytest.mark.parametrize(
    "signed",
    [
        headers(GOOD, at="9" * 400),
        headers(GOOD, at="9" * 13),
        headers(GOOD, at=f"+{NOW}"),
        headers(GOOD, at=f"-{NOW}"),
        headers(GOOD, at=f" {NOW}"),
        headers(GOOD, at=f"{NOW}.0"),
        headers(GOOD, at="1_768_471_209"),
        headers(GOOD, at="".join(chr(0x0660 + int(digit)) for digit in str(NOW))),  # Arabic digits are digits to int()
        headers(GOOD, at=""),
        headers(GOOD + ","),
        headers(GOOD + "," * 1000),
        headers("," + GOOD),
        headers(f"v3,{'é' * 64}"),
        headers(f"v3,{chr(0xFF11) * 64}"),
        headers(GOOD.replace("v3", "V3")),
        headers(GOOD[:-1]),
        headers(GOOD + "0"),
        headers(GOOD + "\n"),
        headers(GOOD, webhook_id=""),
        headers(GOOD, webhook_id="x" * 100_000),
        headers(GOOD, webhook_id="evt_1\x00"),
        headers(GOOD, webhook_id="\ud800"),
        headers("\udcff", webhook_id="\udcff", at="\udcff"),
    ],
    ids=lambda signed: ascii(signed)[:60],
)
def test_a_hostile_header_is_refused(signed: dict[str, str]) -> None:
    """One of these once was a TypeError, a ValueError or a UnicodeError in somebody's receiver."""
    with pytest.raises(BadSignature):
        verify([SECRET], signed, BODY, now=NOW)


anything = (
    st.text(st.characters(), max_size=80)  # lone surrogates and NUL included
    | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1"))  # what a WSGI server hands us
    | st.integers(0, 400).map(lambda digits: "9" * digits)
    | st.integers(0, 80).map(lambda commas: "v3" + "," * commas)
    | st.sampled_from([str(NOW), "evt_1", GOOD, GOOD.upper()])
)
hostile = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("webhook-id", "Webhook-Timestamp", "webhook-signature", "�"), anything)
)


@settings(max_examples=400, deadline=None)
@given(signed=hostile, body=st.binary(max_size=200))
def test_whatever_a_stranger_sends_is_a_bad_signature(signed: dict[str, str], body: bytes) -> None:
    """Any other exception would be a 500, and the provider's retries with it."""
    with pytest.raises(BadSignature):
        verify([OTHER, SECRET], signed, b"not signed" + body, now=NOW)


@settings(max_examples=200, deadline=None)
@given(
    secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    webhook_id=st.text(st.characters(max_codepoint=255), min_size=1, max_size=256),
    at=st.integers(0, 10**12 - 1),
    body=st.binary(max_size=400),
    prefix=st.sampled_from(["", "whsec_"]),
)
def test_what_is_signed_verifies(secret: str, webhook_id: str, at: int, body: bytes, prefix: str) -> None:
    """The sandbox signs with this code, whatever the body holds."""
    signed = headers(sign(prefix + secret, webhook_id, at, body), at=at, webhook_id=webhook_id)

    assert verify([prefix + secret], signed, body, now=at) is Freshness.FRESH
    assert well_formed(signed)[0] == webhook_id


@settings(max_examples=200, deadline=None)
@given(body=st.binary(min_size=1, max_size=200), data=st.data())
def test_one_flipped_bit_is_refused(body: bytes, data: st.DataObject) -> None:
    """In the body, the id, the time or the signature alike."""
    signed = headers(sign(SECRET, "evt_1", NOW, body))
    name = data.draw(st.sampled_from(["body", *signed]))
    raw = bytearray(body if name == "body" else signed[name].encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if name == "body":
        body = bytes(raw)
    else:
        signed[name] = raw.decode("latin-1")

    with pytest.raises(BadSignature):
        verify([SECRET], signed, body, now=NOW)
