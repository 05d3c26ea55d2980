"""Callers verify our notifications: what was signed with their secret is believed, anything else is refused."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

import pipeline
from pipeline.client.errors import BadNotification

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
AT = 1_614_265_330
# The specification's own example; the signature was made with openssl: (printf 'msg_….1614265330.'; cat body) |
# openssl dgst -sha256 -mac HMAC -macopt hexkey:$(echo MfKQ… | base64 -d | xxd -p) -binary | base64
BODY = b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(AT),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def verify(headers: dict[str, str] = HEADERS, body: bytes = BODY, secret: str = SECRET, **options: Any) -> Any:
    return pipeline.verify_notification(secret, headers, body, **{"now": AT, **options})


def test_the_specifications_example_is_believed() -> None:
    """A vector that neither side of ours made."""
    assert verify() == {"test": 2432232314}
    assert verify({name.title(): value for name, value in HEADERS.items()}) == {"test": 2432232314}


@given(body=st.dictionaries(st.text(), st.integers()), key=st.binary(min_size=24, max_size=64))
def test_what_the_reference_library_signs_is_believed_and_nothing_else_of_it(body: dict[str, int], key: bytes) -> None:
    """Other senders and receivers speak the same standard."""
    secret = f"whsec_{base64.b64encode(key).decode()}"
    sent = json.dumps(body)
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(AT, UTC).replace(tzinfo=None), sent)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(AT), "webhook-signature": signature}

    assert verify(headers, sent.encode(), secret) == body

    for wrong in (headers | {"webhook-id": "msg_2"}, headers | {"webhook-timestamp": str(AT + 1)}):
        with pytest.raises(BadNotification):
            verify(wrong, sent.encode(), secret)
    with pytest.raises(BadNotification):
        verify(headers, sent.encode() + b" ", secret)
    with pytest.raises(BadNotification):
        verify(headers, sent.encode(), SECRET)


def test_one_of_several_signatures_suffices() -> None:
    """While a secret is rotated, who sends signs with the old one and the new one."""
    true = HEADERS["webhook-signature"]
    assert verify(HEADERS | {"webhook-signature": f"v1,bm9uZQ== v1a,xyz {true}"})
    with pytest.raises(BadNotification):  # a stranger's list has an end
        verify(HEADERS | {"webhook-signature": "v1,bm9uZQ== " * 5000 + true})


@pytest.mark.parametrize("apart_s", [-301, 301, 10**9])
def test_what_is_not_of_now_is_refused(apart_s: int) -> None:
    """Who records a notification cannot play it back for long."""
    assert verify(now=AT + 299)
    assert verify(now=AT - 299)
    with pytest.raises(BadNotification, match="ago"):
        verify(now=AT + apart_s)
    if apart_s == 301:
        assert verify(now=AT + apart_s, tolerance_s=302)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": ""},
        {"webhook-id": "x" * 300},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "-5"},
        {"webhook-timestamp": "1614265330.0"},
        {"webhook-timestamp": "٣"},
        {"webhook-timestamp": "9" * 4000},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v3," + "0" * 64},
        {"webhook-signature": HEADERS["webhook-signature"].replace("v1,", "v1a,")},
        {"webhook-signature": "v1,\udcff\u20ac"},
    ],
    ids=ascii,
)
def test_odd_headers_are_refused_in_words(change: dict[str, str]) -> None:
    """They are a stranger's: none of them may be an exception of another kind."""
    with pytest.raises(BadNotification):
        verify(HEADERS | change)
    with pytest.raises(BadNotification):
        verify({})


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b"\xff", b"[" * 100_000])
def test_what_is_signed_and_no_object_is_refused(body: bytes) -> None:
    """Callers take fields out of it."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{HEADERS['webhook-id']}.{AT}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    with pytest.raises(BadNotification, match="JSON"):
        verify(HEADERS | {"webhook-signature": f"v1,{mac}"}, body)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_???", "not base64 at all"])
def test_a_secret_that_is_none_is_a_mistake_of_ours(secret: str) -> None:
    """A service that forgot to set it must not believe an empty key."""
    with pytest.raises(ValueError, match="whsec_"):
        verify(secret=secret)
