"""Lists of jobs: every job once, newest first, whatever the filter; and nothing that is asked is more than refused."""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import lists
from pipeline.store.lists import Wanted
from pipeline.store.tables import new_id
from pipeline.web import create_app
from pipeline.web.api.lists import cursor
from tests.conftest import Caller
from tests.factories import execute, placed, queued
from tests.http import Answer, get
from tests.test_api import is_problem


def ask(web: str, caller: Caller, **query: Any) -> Answer:
    names = {name.replace("metadata_", "metadata."): value for name, value in query.items()}
    return get(f"{web}/v1/jobs?{urlencode(names)}", key=caller.key)


def pages(web: str, caller: Caller, **query: Any) -> list[list[str]]:
    """Follow the cursor to the end, and give the ids of each page."""
    found, after = [], None
    while True:
        answer = ask(web, caller, **query, **({"after": after} if after else {}))
        assert answer.status == 200, answer
        assert set(answer.json) == {"items", "next"}
        found.append([item["id"] for item in answer.json["items"]])
        after = answer.json["next"]
        if after is None:
            return found


def whole(web: str, caller: Caller, **query: Any) -> list[str]:
    return [job_id for page in pages(web, caller, **query) for job_id in page]


def many(rt: Runtime, caller: Caller, count: int, state: str, metadata: Mapping[str, str], model: str = "a/b") -> None:
    """Jobs by the statement, for there are many."""
    execute(
        rt,
        """
        INSERT INTO jobs (id, service_id, model, input, metadata, state, due_at, deadline_at, finished_at)
        SELECT CAST(n AS uuid), :service_id, :model, '{"prompt": "a"}', CAST(:metadata AS jsonb), :state,
               CASE WHEN :state = 'queued' THEN clock_timestamp() END, clock_timestamp(),
               CASE WHEN :state = 'cancelled' THEN clock_timestamp() END
        FROM unnest(CAST(:ids AS text[])) n
        """,
        service_id=caller.service.id,
        model=model,
        metadata=json.dumps(metadata),
        state=state,
        ids=[str(new_id()) for _ in range(count)],
    )


def test_pages_give_every_job_once_newest_first(rt: Runtime, web: str, caller: Caller) -> None:
    """Each item reads as the job itself does; the last page says that it is the last."""
    ids = [str(queued(rt, caller.service, f"lighthouse {n}")) for n in range(7)][::-1]

    assert pages(web, caller, limit=3) == [ids[:3], ids[3:6], ids[6:]]
    assert pages(web, caller, limit=7) == [ids]
    assert pages(web, caller) == [ids]
    newest = ask(web, caller, limit=1).json["items"][0]
    assert newest == get(f"{web}/v1/jobs/{ids[0]}", key=caller.key).json


def test_jobs_that_come_meanwhile_move_no_page(rt: Runtime, web: str, caller: Caller) -> None:
    """A cursor is a place in the list, not a count from its top."""
    ids = [str(queued(rt, caller.service)) for _ in range(4)][::-1]
    first = ask(web, caller, limit=2).json
    queued(rt, caller.service)

    assert [item["id"] for item in ask(web, caller, limit=2, after=first["next"]).json["items"]] == ids[2:]


def test_twenty_are_a_page_unless_said_otherwise_and_a_hundred_the_most(rt: Runtime, web: str, caller: Caller) -> None:
    """So that one request's work has a bound."""
    many(rt, caller, 120, "queued", {})
    assert [len(page) for page in pages(web, caller)] == [20] * 6
    assert [len(page) for page in pages(web, caller, limit=100)] == [100, 20]


def test_a_list_without_jobs_is_empty(web: str, caller: Caller) -> None:
    """And not an error."""
    assert ask(web, caller, state="failed", model="a/b", metadata_x="").json == {"items": [], "next": None}


def test_filters_can_be_combined_in_any_way(rt: Runtime, web: str, caller: Caller) -> None:
    """All of them must hold; each page follows from the last whatever leads the list."""
    jobs: dict[str, tuple[str, str, str, str]] = {}
    for n in range(48):
        shop, model = ("red" if n % 3 else "blue"), ("openai/dall-e-2" if n % 4 else "some/other-model")
        job_id = queued(rt, caller.service, model=model, metadata={"shop": shop, "n": str(n % 5), "odd key": "a=b&c"})
        state = "cancelled" if n % 2 else "queued"
        if n % 2:
            execute(
                rt, "UPDATE jobs SET state = 'cancelled', due_at = NULL, finished_at = now() WHERE id = :i", i=job_id
            )
        jobs[str(job_id)] = (state, model, shop, str(n % 5))

    def expected(*wanted: str | None) -> list[str]:
        held = [job_id for job_id, has in jobs.items() if all(w in (None, h) for w, h in zip(wanted, has, strict=True))]
        return sorted(held, reverse=True)

    for at in (None, "queued", "cancelled"):
        for of_model in (None, "some/other-model"):
            for of in (None, "blue"):
                for number in (None, "3"):
                    given_ = {"state": at, "model": of_model, "metadata_shop": of, "metadata_n": number}
                    query = {name: value for name, value in given_.items() if value}
                    assert whole(web, caller, **query, limit=2) == expected(at, of_model, of, number), query
    assert len(whole(web, caller, **{"metadata_odd key": "a=b&c"})) == 48


def test_a_page_may_end_before_it_is_full_and_loses_nothing(rt: Runtime, caller: Caller) -> None:
    """However rare what is wanted: one request looks at so many jobs and no more, and the cursor leads on."""
    for n in range(12):
        many(rt, caller, 4, "queued", {"a": "1"})
        many(rt, caller, 4, "cancelled", {"a": "1" if n == 3 else "2", "b": "3"})
    wanted = Wanted([caller.service.id], State.CANCELLED, metadata={"a": "1"})
    found, after, steps = [], None, 0
    while True:
        with rt.db.transaction() as tx:
            page = lists.page(tx, wanted, after=after, limit=3, at_most=10)
        found += [one.id for one in page.rows]
        steps, after = steps + 1, page.next
        if after is None:
            break
    assert len(found) == len(set(found)) == 4
    assert found == sorted(found, reverse=True)
    assert 3 < steps < 12


def test_jobs_that_come_while_a_page_is_read_cost_it_none(rt: Runtime, caller: Caller, monkeypatch: Any) -> None:
    """How far a page leads, and what is on it, are two statements: the job at its very end was on no page."""
    service_ids = [caller.service.id]
    many(rt, caller, 5, "queued", {"a": "2"})
    many(rt, caller, 1, "queued", {"a": "1", "b": "1"})
    many(rt, caller, 9, "queued", {"a": "1", "b": "2"})
    many(rt, caller, 20, "queued", {"b": "1"})
    meanwhile = iter([2])

    def reach(*words: Any) -> Any:
        found = real(*words)
        for count in meanwhile:
            many(rt, caller, count, "queued", {"a": "1", "b": "2"})
        return found

    real = lists._reach
    monkeypatch.setattr(lists, "_reach", reach)
    found, after, pages_ = [], None, 0
    while after or not pages_:
        with rt.db.transaction() as tx:
            page = lists.page(tx, Wanted(service_ids, metadata={"a": "1", "b": "1"}), after=after, limit=3, at_most=10)
        found += [one.id for one in page.rows]
        after, pages_ = page.next, pages_ + 1
    assert (len(found), pages_) == (1, 2)


def test_the_leading_index_is_the_one_that_leads_furthest(rt: Runtime, caller: Caller) -> None:
    """A rare state among jobs that all have the label, and a rare label among jobs in one state: one page each."""
    many(rt, caller, 2, "cancelled", {"all": "1"})
    many(rt, caller, 2, "queued", {"all": "1", "few": "2"})
    many(rt, caller, 50, "queued", {"all": "1"})
    for wanted in (
        Wanted(None, State.CANCELLED, metadata={"all": "1"}),
        Wanted(None, State.QUEUED, metadata={"few": "2"}),
        Wanted(None, metadata={"all": "1", "few": "2"}),
    ):
        with rt.db.transaction() as tx:
            page = lists.page(tx, wanted, limit=5, at_most=10)
        assert (len(page.rows), page.next) == (2, None)


def test_a_service_lists_its_own_jobs_and_an_operator_all(
    rt: Runtime, web: str, make_caller: Callable[..., Caller]
) -> None:
    """By whatever filter; an operator may ask for those of one service."""
    shop, blog, operator = make_caller("shop"), make_caller("blog"), make_caller("ops", operator=True)
    ids = [str(queued(rt, one.service, metadata={"a": "1"})) for _ in range(3) for one in (shop, blog)]
    for query in ({}, {"state": "queued"}, {"model": "openai/dall-e-2"}, {"metadata_a": "1"}):
        both = query | {"limit": 2}
        assert whole(web, shop, **both) == ids[-2::-2]
        assert whole(web, blog, **both) == ids[::-2]
        assert whole(web, operator, **both) == ids[::-1]
        assert whole(web, operator, **both, service="blog") == ids[::-2]
        after = cursor(UUID(ids[1]))
        assert whole(web, shop, **both, after=after) == [ids[0]]


def test_a_job_of_a_service_that_nobody_knows_is_listed_for_operators(
    rt: Runtime, web: str, make_caller: Callable[..., Caller]
) -> None:
    """There is no foreign key that would keep it out."""
    operator = make_caller("ops", operator=True)
    job_id = placed(rt, operator.service, State.QUEUED)
    execute(rt, "UPDATE jobs SET service_id = :id", id=new_id())
    (item,) = ask(web, operator).json["items"]
    assert (item["id"], item["service"]) == (str(job_id), None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=sleeping", "state"),
        ("state=", "state"),
        ("state=queued&state=failed", "state"),
        ("model=dall-e", "model"),
        ("model=", "model"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("after=x", "after"),
        ("after=", "after"),
        ("after=%F0%9F%92%A9", "after"),
        ("after=" + "A" * 21, "after"),
        ("after=" + "A" * 21 + "B", "after"),
        ("after=" + "A" * 22 + "%3D%3D", "after"),
        ("after=" + "A" * 44, "after"),
        ("after=019a0000-0000-7000-8000-000000000000", "after"),
        ("service=shop", "service"),
        ("metadata=x", "metadata"),
        ("metadata.=x", "metadata."),
        ("metadata.a=%00", "metadata.a"),
        ("metadata.%00=a", "metadata.\ufffd"),
        ("metadata.a=1&metadata.a=2", "metadata.a"),
        ("&".join(f"metadata.{n}=1" for n in range(11)), "metadata.0"),
        ("created_at=2026", "created_at"),
        ("State=queued", "State"),
        ("cursor=", "cursor"),
    ],
    ids=lambda value: value[:24],
)
def test_what_cannot_be_listed_by_is_refused_by_name(query: str, field: str, web: str, caller: Caller) -> None:
    """A filter that is quietly ignored lists the wrong jobs."""
    problem = is_problem(get(f"{web}/v1/jobs?{query}", key=caller.key), 422, "invalid_input")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("name", ["nobody", "", "%00", "Shop", "x" * 100])
def test_an_operator_is_told_that_there_is_no_such_service(
    name: str, web: str, make_caller: Callable[..., Caller]
) -> None:
    """An empty list would say that it has no jobs."""
    operator = make_caller("ops", operator=True)
    problem = is_problem(get(f"{web}/v1/jobs?service={name}", key=operator.key), 422, "invalid_input")
    assert [error["field"] for error in problem["errors"]] == ["service"]


names = st.sampled_from(["state", "model", "limit", "after", "service", "metadata.a", "metadata."]) | st.text(
    max_size=9
)
said = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["queued", "5", "A" * 22, "a/b"]
)
queries = st.lists(st.tuples(names, said), max_size=4).map(urlencode) | st.binary(max_size=60).map(quote)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries | st.text("%&=.+0123456789abcdefmt", max_size=60))
def test_no_query_is_a_fault_of_ours(rt: Runtime, caller: Caller, query: str) -> None:
    """Answered or refused, never a 500."""
    headers = {"Authorization": f"Bearer {caller.key}"}
    answer = create_app(rt).test_client().get(f"/v1/jobs?{query}", headers=headers)
    assert answer.status_code in {200, 422}, answer.text
