"""Notify: tell callers and operators what happened, signed, again and again until they have heard it."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

from pipeline import standard, telemetry, tracing, views
from pipeline.addresses import shown
from pipeline.errors import Blocked, Misled, PipelineError, TooMuch, Unavailable, Unreachable
from pipeline.lanes import Lanes
from pipeline.messenger import Messenger
from pipeline.outbound import Answer, Outbound
from pipeline.predictions import storable
from pipeline.runtime import Runtime
from pipeline.store import endpoints, keys, notifications, reading
from pipeline.store.notifications import Message, Tried
from pipeline.threads import Groups, Loop

log = telemetry.get(__name__)

SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)
"""How long after each failure the next try comes: the first is made at once, the last after 27 and a half hours."""

JITTER = 0.1
"""Each of these is longer or shorter by up to this share."""

TIMEOUT_S = 15.0
"""A receiver must have answered by then."""

LEASE_S = 60.0
"""Longer than a try can take; then another process sends it."""

BATCH = 200
"""Taken by one claim, at most."""

ANSWER_BYTES = 2048
"""Of a receiver's answer, what is kept."""

BODY_CHARS = 16_384
"""Of what was sent, what is kept."""

LONGEST_RETRY_AFTER_S = 3600.0

OFF_AFTER_S = 3 * 86_400.0
"""An endpoint is switched off when nothing has succeeded for so long, in OFF_AFTER_TRIES tries at least."""

OFF_AFTER_TRIES = 10

PROBE_S = 900.0
"""How often one notification is tried at an endpoint that is switched off."""

SOON_S = 0.5
"""How often this process looks while something that has failed for the first time may be due again."""

PATIENCE_S = sum(SCHEDULE_S)
"""How long a notification waits for an endpoint that is switched off, before it is dead."""

SECRETS_REREAD_S = 5.0
"""How old the secrets may be that a process signs with."""

LAST_ANSWERS_S = 3.0
"""How long answers are waited for when the process stops; what is still open then, another process sends again."""

GONE = 410
"""The receiver's word for: never again."""


class Notifier:
    """One process's notifications. `look` claims, the event loop posts, `Groups` records."""

    def __init__(self, rt: Runtime, worker_id: UUID, loop: Loop, outbound: Outbound, wake: Callable[[], None]) -> None:
        self._rt = rt
        self._worker_id = worker_id
        self._loop = loop
        self._outbound = outbound
        self._wake = wake
        self._messenger = Messenger(rt.settings.broker_url)
        self._calls: Groups[tuple[Message, dict[str, Any]]] = Groups("calls", self._call)  # the broker may be silent
        self._answers: Groups[Tried] = Groups("deliveries", self._record)
        self._secrets: dict[UUID | None, tuple[float, Sequence[str]]] = {}
        self._lanes = Lanes()
        self._under_way: dict[UUID, Message] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._full: set[str] = set()  # lanes that had no room left when others were taken
        self._crowded = False  # nor had all of them together
        self._retry_until = 0.0  # some that have just failed are due again by then

    def look(self) -> float | None:
        """Claim what is due, and begin to send it."""
        with self._changed:
            at_most, room, rooms = min(BATCH, self._lanes.free), self._lanes.each, self._lanes.rooms()
            self._full = {name for name, left in rooms.items() if not left}
            self._crowded = at_most <= 0 or room == 1
        if at_most <= 0 or self._stopping:
            return None
        operator_url = self._rt.settings.operator_callback_url
        with self._rt.db.statement() as tx:
            claim = notifications.claim(
                tx,
                worker_id=self._worker_id,
                at_most=at_most,
                room=room,
                rooms=rooms,
                lease_s=LEASE_S,
                probe_s=PROBE_S,
                operator_url=operator_url,
            )
        try:
            if claim.strangers:
                with self._rt.db.statement() as tx:
                    notifications.address(tx, operator_url=operator_url)
            jobs = self._jobs_of(claim.messages)
            secrets = self._signing({one.service_id for one in claim.messages if one.task is None})
        except Unavailable:  # nothing was begun: others need not wait until the lease is over
            self._give_back([one.id for one in claim.messages])
            raise
        self._begin(claim.messages, jobs, secrets)
        if claim.strangers or len(claim.messages) == at_most or self._has_room(claim.messages, room, rooms):
            return 0.0
        return SOON_S if time.monotonic() < self._retry_until else None

    def _has_room(self, messages: Sequence[Message], room: int, rooms: Mapping[str, int]) -> bool:
        """Whether a lane of which all places were given out has one by now: an end that came meanwhile woke nobody."""
        taken = Counter(one.endpoint for one in messages)
        given_out = [name for name, count in taken.items() if count >= rooms.get(name, room)]
        with self._changed:
            left = self._lanes.rooms()
            return any(left.get(name, self._lanes.each) for name in given_out)

    def _jobs_of(self, messages: Sequence[Message]) -> dict[UUID, dict[str, Any]]:
        """The jobs they tell of, as doors show them."""
        ids = sorted({one.job_id for one in messages if one.job_id})
        if not ids:
            return {}
        with self._rt.db.statement() as tx:
            return {row.id: views.job(row, self._rt.settings.public_url) for row in reading.those(tx, ids)}

    def finish(self, wait_s: float) -> None:
        """Wait up to *wait_s* seconds for the answers to what was begun."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, max(wait_s, 0.0))

    def stop(self, wait_s: float) -> None:
        """Begin nothing more, wait a moment for answers, and let others send what has none."""
        self._stopping = True
        self.finish(min(wait_s, LAST_ANSWERS_S))
        with self._changed:
            left = list(self._under_way)
            self._under_way.clear()
        if left:
            with self._rt.db.transaction() as tx:
                notifications.give_back(tx, left, worker_id=self._worker_id)
            log.warning("notify.given_back", count=len(left))
        self._answers.flush(1.5)

    def _give_back(self, ids: Sequence[UUID]) -> None:
        """Have others send these; should that fail as well, they do so when the lease is over."""
        if ids:
            with suppress(Unavailable), self._rt.db.statement() as tx:
                notifications.give_back(tx, ids, worker_id=self._worker_id)

    def _begin(
        self,
        messages: Sequence[Message],
        jobs: Mapping[UUID, dict[str, Any]],
        secrets: Mapping[UUID | None, Sequence[str]],
    ) -> None:
        if not messages:
            return
        with self._changed:
            for one in messages:
                self._lanes.begin(one.endpoint)
            self._under_way.update((one.id, one) for one in messages)
            rooms = self._lanes.rooms()
            self._full.update(name for name, left in rooms.items() if not left)
            self._crowded = self._crowded or self._lanes.each == 1
        for one in messages:
            content = _content(one, jobs.get(one.job_id) if one.job_id else None)
            if one.task is not None:
                self._calls.put((one, content))
            else:
                self._loop.spawn(self._post(one, content, secrets[one.service_id]))

    def _signing(self, owners: set[UUID | None]) -> Mapping[UUID | None, Sequence[str]]:
        """The secrets of these services, and of the operator (None)."""
        now = time.monotonic()
        stale = [one for one in owners if one not in self._secrets or self._secrets[one][0] < now - SECRETS_REREAD_S]
        if stale:
            with self._rt.db.transaction() as tx:
                self._secrets.update((one, (now, keys.of(tx, one))) for one in sorted(stale, key=str))
        return {one: self._secrets[one][1] for one in owners}

    async def _post(self, message: Message, content: Mapping[str, Any], secrets: Sequence[str]) -> None:
        if message.job_id:
            telemetry.bind(job_id=str(message.job_id))
        try:
            with tracing.span(
                "notify",
                kind="client",
                job_id=str(message.job_id) if message.job_id else None,
                attempt=message.number,
                event=message.event,
                address=message.url,
            ) as span:
                told = await self._posted(message, content, secrets)
                span.set(status=told.status)
        except Exception as error:  # a fault of ours must not hold up the lane
            log.exception("notify.failed", notification_id=str(message.id))
            told = Tried(message, "", error=f"unexpected: {type(error).__name__}")
        self._ended(told)

    async def _posted(self, message: Message, content: Mapping[str, Any], secrets: Sequence[str]) -> Tried:
        if message.url is None:
            return Tried(message, "", error="there is no address any more", final=True)
        target = shown(message.url)
        body = json.dumps(content, separators=(",", ":"))
        headers = standard.headers(secrets, message.id, body, now=self._rt.unix_time())
        request = _kept(headers, body)
        began = time.monotonic()
        try:
            answer = await self._outbound.post(
                message.url, headers=headers, body=body.encode(), total_s=TIMEOUT_S, answer_bytes=ANSWER_BYTES
            )
        except Blocked as error:
            final = not isinstance(error, Misled)  # what DNS answers may be different by the next try
            return Tried(message, target, error=f"{error.code}: {error.detail}", final=final)
        except (Unreachable, TooMuch) as error:
            took_ms = round((time.monotonic() - began) * 1000)
            return Tried(message, target, error=error.detail, request=request, duration_ms=took_ms)
        return _answered(message, target, request, answer, now=self._rt.unix_time())

    def _call(self, group: Sequence[tuple[Message, dict[str, Any]]]) -> None:
        """Call tasks, one after the other; where the broker fails, the rest of the group does not wait for it too."""
        broken = ""
        for message, content in group:
            target = f"{message.task}@{message.queue}"
            words = {"event": content["type"], "id": str(message.id), "data": content["data"]}
            request = _kept({}, json.dumps(words))
            began = time.monotonic()
            told = Tried(message, target, error="its service may no longer name this task", final=True)
            if message.queue is not None:
                error = broken
                try:
                    if not broken:
                        self._messenger.call(str(message.task), message.queue, task_id=str(message.id), words=words)
                except PipelineError as failure:
                    error = broken = failure.detail
                took_ms = round((time.monotonic() - began) * 1000)
                told = Tried(message, target, error=error or None, request=request, duration_ms=took_ms)
            self._ended(told)

    def _ended(self, told: Tried) -> None:
        """One try is over: have it recorded, and its place taken by the next."""
        message = told.message
        self._answers.put(told)
        with self._changed:
            self._lanes.end(message.endpoint, answered=told.status is not None or told.error is None or told.final)
            self._under_way.pop(message.id, None)
            self._changed.notify_all()
            more_may_wait = self._crowded or message.endpoint in self._full
            self._full.discard(message.endpoint)
        if more_may_wait:
            self._wake()

    def _record(self, group: Sequence[Tried]) -> None:
        """Write a group of tries down, and what it says of their endpoints."""
        failures: dict[str, list[str]] = defaultdict(list)
        working = {told.message.endpoint for told in group if told.error is None}
        for told in group:
            if told.error is not None and not told.final and told.message.endpoint not in working:
                failures[told.message.endpoint].append(told.error)
        with self._rt.db.transaction() as tx:
            dead = notifications.record(tx, group, worker_id=self._worker_id, schedule=SCHEDULE_S, jitter=JITTER)
            on = endpoints.succeeded(tx, working)
            off = endpoints.failed(tx, failures, days_s=OFF_AFTER_S, at_least=OFF_AFTER_TRIES, probe_s=PROBE_S)
            for name in on:
                notifications.tell_of_endpoint(tx, "endpoint.switched_on", name, {"by": "a success"})
            for one in off:
                facts = {"failing_since": views.time(one.failing_since), "failures": one.failures, "error": one.error}
                notifications.tell_of_endpoint(tx, "endpoint.switched_off", one.name, facts)
            notifications.count_dead(tx, dead)
        for told in group:
            message = told.message
            facts = {"notification_id": str(message.id), "tells": message.event, "attempt": message.number}
            facts |= {"endpoint": message.endpoint, "http_status": told.status, "took_ms": told.duration_ms}
            facts |= {"job_id": str(message.job_id)} if message.job_id else {}
            if told.error is None:
                log.info("notification.delivered", **facts)
            else:
                log.warning("notification.failed", why=told.error, dead=message.id in dead, **facts)
        for name in on:
            log.warning("endpoint.switched_on", endpoint=name)
        for one in off:
            log.error("endpoint.switched_off", endpoint=one.name, why=one.error, failures=one.failures)
        if any(told.error is not None and told.message.id not in dead for told in group):
            self._retry_until = time.monotonic() + SCHEDULE_S[0] * (1 + JITTER) + SOON_S
            self._wake()  # it comes back by itself, and not only with the next sweep
        elif on:
            self._wake()


def _content(message: Message, job: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    What is told: the job as it is now, and of outputs, whether all are `stored`, so that their links last.

    Events of the account carry what they say of it instead of a job.
    """
    data = dict(message.data)
    if job is not None:
        outputs = job["outputs"]
        stored = {"stored": all(one["stored"] for one in outputs)} if outputs else {}
        data = {"job": job, **stored, **data}
    return {"type": message.event, "timestamp": views.time(message.created_at), "data": data}


def _kept(headers: Mapping[str, str], body: str) -> dict[str, Any]:
    return {"headers": headers, "body": body[:BODY_CHARS], "truncated": len(body) > BODY_CHARS}


def _answered(message: Message, target: str, request: Mapping[str, Any], answer: Answer, *, now: float) -> Tried:
    error, wait_s = None, 0.0
    if not 200 <= answer.status < 300:
        error = f"answered {answer.status}"
        wait_s = _retry_after_s(answer.headers, now=now)
    said = storable(answer.body.decode("utf-8", "replace"))
    return Tried(
        message,
        target,
        error=error,
        final=answer.status == GONE,
        request=request,
        status=answer.status,
        answer=said + ("…" if answer.truncated else ""),
        duration_ms=answer.duration_ms,
        retry_after_s=wait_s,
    )


def _retry_after_s(headers: Mapping[str, str], *, now: float) -> float:
    """What a receiver asks for, in seconds or as a date; *now* is in Unix seconds."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit() and len(said) < 10:
        return min(float(said), LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(said)
        wait_s = at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now
    except (ValueError, OverflowError):  # it is no date
        return 0.0
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)
