"""What callers and operators ask for, as the web server answers it: lists by each kind of filter, the dashboard."""

import html
import re
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from flask.testing import FlaskClient

from pipeline.web.api.lists import cursor

PASSWORD = "a password of the benchmark"
DASHBOARD = {"DASHBOARD_PASSWORD": PASSWORD, "SECRET_KEY": "a-key-of-the-benchmark"}
"""Settings that open the dashboard."""

FILTERS: Sequence[Mapping[str, str]] = [
    {},
    {"state": "completed"},
    {"state": "queued"},
    {"state": "failed"},
    {"state": "unknown"},
    {"state": "submitting"},
    {"model": "openai/dall-e-2"},
    {"model": "rare/model"},
    {"model": "no/such-model"},
    {"model": "openai/dall-e-2", "state": "completed"},
    {"model": "rare/model", "state": "failed"},
    {"metadata.env": "production"},
    {"metadata.env": "test"},
    {"metadata.campaign": "first"},
    {"metadata.customer": "4711"},
    {"metadata.order": "1"},
    {"metadata.order": "none"},
    {"metadata.env": "production", "state": "unknown"},
    {"metadata.campaign": "first", "metadata.env": "test", "model": "openai/dall-e-3"},
]
"""Of `GET /v1/jobs`."""

OVERVIEW = ("/", "/?period=24h", "/?period=7d", "/?period=30d")
JOBS = (
    "/jobs",
    "/jobs?state=completed",
    "/jobs?state=failed",
    "/jobs?state=queued",
    "/jobs?model=rare/model",
    "/jobs?service=a-shop&state=completed",
    "/jobs?metadata=order%3D1",
    "/jobs?held=1",
)
CALLBACKS = (
    "/callbacks",
    "/callbacks?verdict=late",
    "/callbacks?verdict=suspicious",
    "/callbacks?verdict=orphan",
    "/callbacks?verdict=applied",
)
NOTIFICATIONS = (
    "/notifications",
    "/notifications?state=dead",
    "/notifications?state=pending",
    "/notifications?state=delivered",
    "/notifications?state=unaddressed",
    "/notifications?service=a-shop",
)


def sign_in(client: FlaskClient) -> None:
    """Come into the dashboard by its door."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/login").text)
    assert found
    answer = client.post("/login", data={"csrf_token": found[1], "name": "Ann", "password": PASSWORD})
    assert answer.status_code == 303, answer.text


def listed(client: FlaskClient, key: str, wanted: Mapping[str, str], *, after: UUID | None = None) -> tuple[float, int]:
    """One page of a list of jobs: how many milliseconds it took, and how many there are on it."""
    query = {"limit": "20", **wanted} | ({"after": cursor(after)} if after else {})
    began = time.perf_counter()
    answer = client.get("/v1/jobs", query_string=query, headers={"Authorization": f"Bearer {key}"})
    took_ms = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, answer.text
    return took_ms, len(answer.get_json()["items"])


def page(client: FlaskClient, path: str) -> float:
    """One page of the dashboard: how many milliseconds it took."""
    began = time.perf_counter()
    answer = client.get(path)
    took_ms = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, (path, answer.status_code)
    return took_ms


def older(client: FlaskClient, paths: Sequence[str]) -> list[str]:
    """The second page of each list that has one."""
    found = []
    for path in paths:
        link = re.search(r'<a rel="next" href="([^"]+)"', client.get(path).text)
        found += [html.unescape(link[1])] if link else []
    return found
