"""Predictions: what the provider says is understood, and nothing it may say by mistake breaks us."""

import contextlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.predictions import Prediction, Status, Unreadable, cut, parse, parse_time, read, storable, task_id

SAID = {
    "id": "e6832d4abffb4d79bfbca19783fca133",
    "model": "openai/dall-e-2",
    "outputs": ["https://cdn.example.com/1.png"],
    "urls": {"get": "https://api.wavespeed.ai/api/v3/predictions/e6832d4abffb4d79bfbca19783fca133/result"},
    "has_nsfw_contents": [False],
    "status": "completed",
    "created_at": "2026-01-15T10:00:00.123456789Z",
    "error": "",
    "executionTime": 8421,
    "timings": {"inference": 8400},
}
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def said(**fields: Any) -> Prediction:
    return parse(SAID | fields)


def test_a_completed_prediction_is_read_whole() -> None:
    """Every field of the documented body has its place."""
    assert read(json.dumps(SAID).encode()) == Prediction(
        id="e6832d4abffb4d79bfbca19783fca133",
        status=Status.COMPLETED,
        said="completed",
        model="openai/dall-e-2",
        outputs=("https://cdn.example.com/1.png",),
        nsfw=(False,),
        created_at=datetime(2026, 1, 15, 10, 0, 0, 123456, UTC),
        inference_ms=8400,
    )


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("completed", Status.COMPLETED),
        ("failed", Status.FAILED),
        ("cancelled", Status.FAILED),
        ("timeout", Status.FAILED),
        ("deleted", Status.FAILED),
        ("created", Status.RUNNING),
        ("pending", Status.RUNNING),
        ("processing", Status.RUNNING),
        ("Completed", Status.RUNNING),
        ("a word of next year", Status.RUNNING),
    ],
)
def test_a_status_nobody_knows_means_keep_waiting(word: str, status: Status) -> None:
    """A new word must not end a paid job; the deadline does, if nothing else."""
    assert (said(status=word).status, said(status=word).said) == (status, word)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2025-05-19T06:09:15.948268264Z", datetime(2025, 5, 19, 6, 9, 15, 948268, UTC)),
        ("2026-01-15T10:00:01.5Z", datetime(2026, 1, 15, 10, 0, 1, 500000, UTC)),
        ("2026-01-15T10:00:01Z", datetime(2026, 1, 15, 10, 0, 1, 0, UTC)),
        ("2026-01-15T18:00:01.000000001+08:00", datetime(2026, 1, 15, 10, 0, 1, 0, UTC)),
        ("2026-01-15T10:00:01", datetime(2026, 1, 15, 10, 0, 1, 0, UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("2026-02-30T10:00:01Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (1768471209, None),
        ("٢٠٢٦-٠١-١٥T١٠:٠٠:٠١.٥Z", None),
    ],
)
def test_times_have_up_to_nine_digits_after_the_point(text: object, at: datetime | None) -> None:
    """The server prints nanoseconds and drops trailing zeros; what is no time is no time."""
    assert parse_time(text) == at


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("The content contains sensitive information.", "The content contains sensitive information."),
        ({"message": "Failed to download."}, "Failed to download."),
        ("", "The provider reports the task as failed."),
        (None, "The provider reports the task as failed."),
        ({"message": 5}, "The provider reports the task as failed."),
        ([], "The provider reports the task as failed."),
        ("two\r\nlines \x00", "two lines �"),
        ("x" * 10_000, "x" * 499 + "…"),
    ],
)
def test_an_error_is_a_text_or_an_object(error: object, words: str) -> None:
    """Both shapes occur; a job always tells some reason, on one line."""
    problem = said(status="failed", error=error, outputs=[]).problem

    assert problem == {"code": "generation_failed", "message": words, "provider_code": None}


@pytest.mark.parametrize(
    ("code", "ours", "kept"),
    [
        (1200, "content_moderation", 1200),
        (1400, "invalid_parameter", 1400),
        (1401, "invalid_parameter", 1401),
        (1402, "media_access_failed", 1402),
        (1403, "generation_failed", 1403),
        (5000, "generation_failed", 5000),
        (99999, "generation_failed", 99999),
        (0, "generation_failed", None),
        (None, "generation_failed", None),
        ("1200", "generation_failed", None),
        (True, "generation_failed", None),
        (10**400, "generation_failed", None),
    ],
)
def test_the_providers_codes_become_stable_ones(code: object, ours: str, kept: int | None) -> None:
    """Callers test for ours; the provider's own is kept beside it."""
    problem = said(status="failed", code=code).problem

    assert problem
    assert (problem["code"], problem["provider_code"]) == (ours, kept)


@pytest.mark.parametrize("status", ["completed", "processing"])
def test_what_did_not_fail_has_no_problem(status: str) -> None:
    """A warning beside a success is not a failure, and a sync timeout (5004) is still running."""
    assert said(status=status, code=5004, error="Sync mode timed out").problem is None


@pytest.mark.parametrize(
    ("outputs", "nsfw", "files"),
    [
        (["https://a/1.png"], [False], [{"url": "https://a/1.png", "nsfw": False}]),
        (
            ["https://a/1.png", "http://a/2.png"],
            [True],
            [{"url": "https://a/1.png", "nsfw": True}, {"url": "http://a/2.png", "nsfw": None}],
        ),
        (["https://a/1.png"], None, [{"url": "https://a/1.png", "nsfw": None}]),
        (["https://a/1.png"], "yes", [{"url": "https://a/1.png", "nsfw": None}]),
        (["a poem"], [], [{"value": "a poem", "nsfw": None}]),
        ([{"text": "a poem"}], [False], [{"value": {"text": "a poem"}, "nsfw": False}]),
        (["file:///etc/passwd"], [False], [{"value": "file:///etc/passwd", "nsfw": False}]),
        ([None], [], [{"value": None, "nsfw": None}]),
        ([], [], []),
        (None, None, []),
        ("https://a/1.png", [False], []),
    ],
)
def test_outputs_become_files_with_their_flags(outputs: object, nsfw: object, files: list[dict[str, Any]]) -> None:
    """A file without a flag of its own was not judged: that is not the same as harmless."""
    assert said(outputs=outputs, has_nsfw_contents=nsfw).files == files


@pytest.mark.parametrize(
    ("fields", "inference_ms"),
    [
        ({}, 8400),
        ({"timings": None}, 8421),
        ({"timings": {"inference": 0}}, 8421),
        ({"timings": [], "executionTime": "8421"}, None),
        ({"timings": {"inference": 2**31}, "executionTime": 7}, 7),
    ],
)
def test_the_inference_time_has_two_places(fields: dict[str, Any], inference_ms: int | None) -> None:
    """Old answers have only executionTime."""
    assert said(**fields).inference_ms == inference_ms


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"completed"',
        b"{",
        b'{"id":"x"}',
        b'{"status":"completed"}',
        b'{"id":"","status":"completed"}',
        b'{"id":5,"status":"completed"}',
        b'{"id":"x","status":5}',
        b'{"id":"x","status":""}',
        b'{"id":"' + b"x" * 201 + b'","status":"completed"}',
        b'{"id":"x","status":"completed","n":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: ascii(body[:30]),
)
def test_without_an_id_and_a_status_it_is_unreadable(body: bytes) -> None:
    """And that is the only way in which reading fails."""
    with pytest.raises(Unreadable):
        read(body)


@pytest.mark.parametrize("found", [{}, {"id": None}, {"id": ""}, {"id": 5}, {"id": "x" * 201}])
def test_a_task_has_an_id(found: dict[str, Any]) -> None:
    """An opaque text, of a length that was seen."""
    with pytest.raises(Unreadable):
        task_id(found)


text = st.text(st.characters(), max_size=30)  # lone surrogates and NUL included
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text | st.integers(2**31, 10**500)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
OPTIONAL = [
    "model",
    "outputs",
    "urls",
    "has_nsfw_contents",
    "created_at",
    "error",
    "code",
    "executionTime",
    "timings",
    "input",
]
predictions = st.fixed_dictionaries(
    {
        "id": text.filter(bool),
        "status": st.sampled_from(["completed", "failed", "processing"]) | text.filter(bool),
    },
    optional=dict.fromkeys(OPTIONAL, values) | {"timings": st.dictionaries(st.just("inference"), values)},
)


def assert_storable(prediction: Prediction) -> None:
    """Postgres can keep it: JSON without NaN, text without NUL or lone surrogates, numbers of its columns' size."""
    kept = [prediction.files, prediction.problem, prediction.input]
    assert not UNSTORABLE.search(json.dumps(kept, allow_nan=False, ensure_ascii=False))
    for words in (prediction.id, prediction.said, prediction.model or "", prediction.error):
        assert not UNSTORABLE.search(words)
    assert abs(prediction.inference_ms or 0) < 2**31
    assert abs(prediction.error_code or 0) < 2**31


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=predictions)
def test_an_optional_field_of_any_kind_breaks_nothing(value: dict[str, Any]) -> None:
    """The verdict was paid for: an odd field beside it must not cost it."""
    prediction = parse(value)

    assert prediction.status in set(Status)
    assert_storable(prediction)
    assert_storable(read(json.dumps(value).encode()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=values)
def test_any_json_is_a_prediction_or_unreadable(value: Any) -> None:
    """No third thing."""
    with contextlib.suppress(Unreadable):
        assert_storable(parse(value))
    with contextlib.suppress(Unreadable):
        assert_storable(read(json.dumps(value).encode()))


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=100) | text.map(lambda words: words.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_prediction_or_unreadable(body: bytes) -> None:
    """The same for what is not JSON at all."""
    with contextlib.suppress(Unreadable):
        assert_storable(read(body))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=values)
def test_what_is_storable_stays_as_it_is(value: Any) -> None:
    """Made storable twice is the same as once, and what was storable is not touched."""
    once = storable(value)

    assert storable(once) == once
    assert not UNSTORABLE.search(json.dumps(once, allow_nan=False, ensure_ascii=False))


def test_a_tower_of_lists_is_cut() -> None:
    """A few dozen levels are more than any output has; a thousand would exhaust somebody's stack later."""
    tower: Any = 1
    for _ in range(900):
        tower = [tower]

    assert len(json.dumps(said(input={"tower": tower}).input)) < 200


@settings(max_examples=100, deadline=None)
@given(words=text, length=st.integers(1, 40))
def test_cut_gives_one_short_line(words: str, length: int) -> None:
    """It goes into logs and tables."""
    line = cut(words, length)

    assert len(line) <= length
    assert len(line.splitlines()) <= 1
