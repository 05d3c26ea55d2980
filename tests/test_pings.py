"""The ping to ourselves: echoed to who has our secret, and to nobody else."""

import time
from pathlib import Path

import pytest

from pipeline import pings
from pipeline.errors import BadSignature
from pipeline.pings import BODY, MAX_BODY_BYTES, PATH, Echo
from pipeline.runtime import Runtime
from pipeline.signatures import TOLERANCE_S
from pipeline.store import keys
from tests.conftest import WEBHOOK_SECRET
from tests.factories import scalar, signed
from tests.http import request
from tests.serving import serving

SECRET = "whsec_bm90aGluZyBvZiBvdXJz"


def own_secret(rt: Runtime) -> str:
    with rt.db.transaction() as tx:
        return keys.of(tx, None)[0]


def echoed(answer_body: dict[str, object]) -> Echo:
    return Echo(**answer_body)  # type: ignore[arg-type]


def test_a_ping_of_ours_is_echoed_with_what_came_of_its_body(rt: Runtime, web: str) -> None:
    """Whatever the body: it is not signed, for the echo is to tell what happened to it."""
    secret, now = own_secret(rt), int(time.time())
    seen = set()
    for body in (BODY, b"", b"\x00\xff"):
        answer = request("POST", web + PATH, body, pings.headers(secret, "ping_1", now=now))
        assert answer.status == 200
        assert pings.is_ours(secret, "ping_1", echoed(answer.json))
        assert not pings.is_ours(secret, "ping_2", echoed(answer.json))
        assert not pings.is_ours(SECRET, "ping_1", echoed(answer.json))
        seen.add(answer.json["sha256"])
    assert len(seen) == 3


def test_a_secret_that_was_just_rotated_still_answers(rt: Runtime, web: str) -> None:
    """Whoever began with the former one ends with it."""
    former = own_secret(rt)
    with rt.db.transaction() as tx:
        keys.rotate(tx, None)
    answer = request("POST", web + PATH, BODY, pings.headers(former, "ping_1", now=int(time.time())))
    assert pings.is_ours(former, "ping_1", echoed(answer.json))


def test_strangers_learn_nothing_and_break_nothing(rt: Runtime, web: str) -> None:
    """401 whatever they send, 413 beyond 4 KiB; nothing is stored, and nothing is said that could be used."""
    secret, now = own_secret(rt), int(time.time())
    ours = pings.headers(secret, "ping_1", now=now)
    hostile = [
        {},
        pings.headers(SECRET, "ping_1", now=now),
        pings.headers(WEBHOOK_SECRET, "ping_1", now=now),
        pings.headers(secret, "ping_1", now=now - TOLERANCE_S - 10),
        signed(WEBHOOK_SECRET, b""),  # a callback's, of the provider
        signed(secret, b""),  # what operators are told is signed with the same secret, otherwise
        ours | {"webhook-id": "ping_2"},
        ours | {"webhook-timestamp": "9" * 400},
        ours | {"webhook-signature": ours["webhook-signature"][:-1]},
        ours | {"webhook-id": "\xff\xfe"},
        ours | {"webhook-id": "x" * 5000},
    ]
    for headers in hostile:
        answer = request("POST", web + PATH, BODY, headers)
        assert (answer.status, answer.json["code"]) == (401, "bad_signature"), headers
        assert secret not in answer.body.decode()
    assert request("POST", web + PATH, b"x" * (MAX_BODY_BYTES + 1), ours).status == 413
    assert request("POST", web + PATH, iter([b"x" * MAX_BODY_BYTES, b"x"]), ours).status == 413
    assert request("GET", web + PATH, None, ours).status == 405
    assert scalar(rt, "SELECT count(*) FROM callbacks") == 0


@pytest.mark.parametrize("off_s", [-TOLERANCE_S, TOLERANCE_S])
def test_the_same_tolerance_holds_as_for_callbacks(off_s: int) -> None:
    """Or the ping would pass where callbacks do not."""
    headers = pings.headers(SECRET, "ping_1", now=1_700_000_000)
    assert pings.answer([SECRET], headers, BODY, now=1_700_000_000 + off_s).size == len(BODY)
    with pytest.raises(BadSignature, match="minutes away"):
        pings.answer([SECRET], headers, BODY, now=1_700_000_000 + off_s + (1 if off_s > 0 else -1))


def test_without_the_database_it_may_be_sent_again(environ: dict[str, str], tmp_path: Path) -> None:
    """503, as for callbacks: it may well be ours."""
    away = {"DATABASE_URL": "postgres://nobody:a-password@127.0.0.1:1/none"}
    headers = pings.headers(SECRET, "ping_1", now=int(time.time()))
    with serving(environ | away, tmp_path) as served:
        assert request("POST", served.url + PATH, BODY, headers).status == 503
