"""The page of models: what there is, what it costs, and which of them stand still."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from pipeline.catalogue import Offer
from pipeline.runtime import Runtime
from pipeline.store import audit, catalogue, prices
from tests.conftest import Caller
from tests.factories import MODEL, queued, scalar
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]


def test_models_are_listed_with_what_they_cost_and_searched(visitor: Visitors, rt: Runtime) -> None:
    with rt.db.transaction() as tx:
        catalogue.keep(tx, [Offer("some/painter", "text-to-image"), Offer("some/film", "text-to-video")])
        prices.keep(tx, {("some/film", b"a"): Decimal("0.5"), ("some/film", b"b"): Decimal(2), ("odd/x", b"c"): None})
    ann = visitor()
    text = ann.get("/models").text
    assert "$0.50 to $2.00" in text
    assert '$0.12 <span class="faint">by hand</span>' in text
    assert 'href="/playground?model=some/painter"' in text
    found = ann.get("/models", params={"q": "VIDEO"}).text
    assert "some/<wbr>film" in found
    assert "painter" not in found
    assert "No model has these letters" in ann.get("/models", params={"q": "\x00<script>"}).text


def test_a_model_is_paused_and_goes_on_and_both_are_written_down(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job_id = queued(rt, caller.service)
    ann = visitor()
    ann.get("/models")
    assert "is paused" in ann.post("/models/pause", {"model": MODEL, "back": "/models"}).text
    assert scalar(rt, "SELECT due_at = deadline_at FROM jobs WHERE id = :id", id=job_id)
    assert "goes on" in ann.post("/models/resume", {"model": MODEL, "back": "/models"}).text
    assert scalar(rt, "SELECT due_at < deadline_at FROM jobs WHERE id = :id", id=job_id)
    with rt.db.transaction() as tx:
        assert [(row.action, row.target) for row in audit.newest(tx)][:2] == [
            ("model.resume", MODEL),
            ("model.pause", MODEL),
        ]


@pytest.mark.parametrize("model", ["", "x", "a/\x00", "predictions/x"], ids=ascii)
def test_what_is_no_model_is_not_paused(visitor: Visitors, rt: Runtime, model: str) -> None:
    ann = visitor()
    ann.get("/models")
    assert "model: " in ann.post("/models/pause", {"model": model, "back": "/models"}).text
    assert scalar(rt, "SELECT count(*) FROM models") == 0


def test_a_viewer_pauses_nothing(visitor: Visitors, rt: Runtime) -> None:
    viewer = visitor(password=VIEWERS_PASSWORD)
    assert "/models/pause" not in viewer.get("/models").text
    assert "change nothing" in viewer.post("/models/pause", {"model": MODEL}).text
    assert scalar(rt, "SELECT count(*) FROM models") == 0
