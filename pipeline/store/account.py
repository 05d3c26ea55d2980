"""The provider account's one row: brakes, halts, leases and webhook secrets, shared by all processes."""

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.store.tables import new_id, spelled
from pipeline.store.workers import DEAD

WINDOW_S = 60.0
"""The provider's limits reset every minute: no backoff needs to be longer. Source: account-levels."""

_RECENT = 20
_LOST_IN_A_ROW = 5
_LOST_OF_RECENT = 10

FORMER_SECRET_S = 600
"""How long the webhook secret before the present one is still believed, in seconds."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a group of answers says of the account. Each `…_at` is the start of the newest POST that ended so."""

    results: str = ""  # '+' for each accepted, '-' for each lost or unreachable, in order
    accepted_at: datetime | None = None
    throttled_at: datetime | None = None
    throttled: int = 1  # how many were refused so, when any was
    retry_after_s: float | None = None
    concurrency: bool = False
    lost_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What changed on the account, for the log: a backoff in seconds, and why."""

    backoff_s: float | None = None
    reason: str | None = None


_BRAKES = text("""
    SELECT backoff_s, backoff_at, trial, recent, in_flight_cap, clock_timestamp() AS now,
        (SELECT count(*) FROM jobs WHERE state IN ('processing', 'unknown') AND due_at IS NOT NULL)::int AS running,
        (SELECT count(*) FROM jobs WHERE state = 'submitting' AND due_at IS NOT NULL
            AND (in_flight_cap IS NOT NULL OR submitted_at < :throttled_at))::int AS ahead
    FROM account WHERE id = 1 FOR UPDATE
""")

_BRAKE = text("""
    UPDATE account SET recent = :recent, trial = :trial, backoff_s = :backoff_s,
        backoff_until = CASE WHEN :braking THEN clock_timestamp() + make_interval(secs => :wait_s)
                             WHEN :recovered THEN NULL ELSE backoff_until END,
        backoff_at = CASE WHEN :braking THEN clock_timestamp() ELSE backoff_at END,
        in_flight_cap = :cap,
        cap_changed_at = CASE WHEN :learnt THEN clock_timestamp() ELSE cap_changed_at END
    WHERE id = 1
""")


def weigh(tx: Connection, answers: Answers, *, max_in_flight: int) -> Effect:
    """
    Let a group of answers loosen or tighten the account's brakes.

    429: back off by what the provider asks for, else by 1 s doubling up to its window; a success resets it.
    Lost or unreachable, five in a row or more than half of the last twenty: back off likewise, then try with
    one POST; should that be lost too, back off for longer. Answers to POSTs that started before the last backoff
    began, good ones and bad ones, belong to the same incident and change nothing.

    A refusal for concurrency lowers the in-flight cap by one, or to what else is in flight; the first one to what the
    provider must have taken: what runs, and the POSTs that began before the refused one. Raising the cap again keeps
    a clock of its own, which no refusal sets back: or a few refusals in a hundred, whatever their cause, would bring
    it down to one and keep it there.
    """
    now = tx.execute(_BRAKES, {"throttled_at": answers.throttled_at}).one()
    recent = (now.recent + answers.results)[-_RECENT:]

    def is_new(at: datetime | None) -> bool:
        return at is not None and (now.backoff_at is None or at > now.backoff_at)

    recovered = is_new(answers.accepted_at)
    backoff_s = 0.0 if recovered and not answers.throttled_at else now.backoff_s
    trial = now.trial and not recovered
    cap, learnt, wait_s, reason = now.in_flight_cap, False, None, None

    if is_new(answers.throttled_at):
        backoff_s = min(max(1.0, backoff_s * 2), WINDOW_S)
        wait_s, reason = answers.retry_after_s or backoff_s, "throttled"
        if answers.concurrency:
            taken = now.running + max(0, now.ahead - (answers.throttled - 1))
            cap, learnt = max(1, min((cap or max_in_flight) - 1, taken)), cap is None
    elif is_new(answers.lost_at) and (trial or _is_failing(recent)):
        backoff_s = min(max(1.0, backoff_s * 2), WINDOW_S)
        wait_s, reason, trial, recent = backoff_s, "failing", True, ""
    if "-" not in recent:
        recent = ""
    tx.execute(
        _BRAKE,
        {
            "recent": recent,
            "trial": trial,
            "backoff_s": backoff_s,
            "braking": wait_s is not None,
            "wait_s": wait_s or 0.0,
            "recovered": recovered and not answers.throttled_at,
            "cap": cap,
            "learnt": learnt,
        },
    )
    return Effect(wait_s, reason)


def _is_failing(recent: str) -> bool:
    return recent.endswith("-" * _LOST_IN_A_ROW) or recent.count("-") > _LOST_OF_RECENT


def halt(tx: Connection, reason: str, *, balance: float | None, probe_s: float = 60.0) -> bool:
    """Stop every POST, poll and list until a probe finds the account in order. True to the call that stopped it."""
    statement = text(f"""
        WITH halted AS (
            UPDATE account SET halted_reason = :reason, halted_at = clock_timestamp(), halted_balance = :balance,
                trial = true, probe_at = clock_timestamp() + make_interval(secs => :probe_s)
            WHERE id = 1 AND halted_reason IS NULL RETURNING halted_reason, halted_at, halted_balance
        )
        INSERT INTO notifications (id, event, audience, data, due_at)
        SELECT :notice_id, 'account.halted', 'operator', jsonb_build_object(
            'reason', halted_reason, 'since', {spelled("halted_at")}, 'balance_usd', halted_balance), clock_timestamp()
        FROM halted RETURNING id
    """)
    parameters = {"reason": reason, "balance": balance, "probe_s": probe_s, "notice_id": new_id()}
    return tx.execute(statement, parameters).first() is not None


@dataclass(frozen=True, slots=True)
class Halt:
    """Why the account is halted, since when, and the balance in USD that was too little, if that was it."""

    reason: str
    since: datetime
    balance: float | None


def claim_probe(tx: Connection, *, probe_s: float) -> Halt | None:
    """Take this minute's probe of a halted account: one process gets it."""
    statement = text("""
        UPDATE account SET probe_at = clock_timestamp() + make_interval(secs => :probe_s)
        WHERE id = 1 AND halted_reason IS NOT NULL AND probe_at <= clock_timestamp()
        RETURNING halted_reason, halted_at, halted_balance
    """)
    row = tx.execute(statement, {"probe_s": probe_s}).first()
    return Halt(*row) if row else None


def resume(tx: Connection) -> bool:
    """End the halt; one POST goes first (the trial). True to the call that ended it."""
    statement = text(f"""
        WITH halted AS (
            SELECT halted_reason, halted_at FROM account WHERE id = 1 AND halted_reason IS NOT NULL FOR UPDATE
        ), resumed AS (
            UPDATE account a SET halted_reason = NULL, halted_at = NULL, halted_balance = NULL, probe_at = NULL,
                trial = true, recent = '', backoff_s = 0, backoff_until = NULL, backoff_at = clock_timestamp()
            FROM halted h WHERE a.id = 1 RETURNING h.halted_reason, h.halted_at
        )
        INSERT INTO notifications (id, event, audience, data, due_at)
        SELECT :notice_id, 'account.resumed', 'operator',
               jsonb_build_object('reason', halted_reason, 'since', {spelled("halted_at")}), clock_timestamp()
        FROM resumed RETURNING id
    """)
    return tx.execute(statement, {"notice_id": new_id()}).first() is not None


@dataclass(frozen=True, slots=True)
class Condition:
    """
    The account's state for readers: `backoff_s` is what is left of it, `swept_s` ago the sweep last ran.

    `unarchived_s` is the age of the oldest output that is still to be archived; None: none, or nobody archives.
    """

    halted_reason: str | None
    halted_at: datetime | None
    backoff_s: float | None
    trial: bool
    in_flight_cap: int | None
    swept_s: float | None
    unarchived_s: float | None


def condition(tx: Connection) -> Condition:
    """How the account is."""
    row = tx.execute(
        text("""
            SELECT halted_reason, halted_at,
                greatest(extract(epoch FROM backoff_until - clock_timestamp())::float8, 0) AS backoff_s,
                trial, in_flight_cap, extract(epoch FROM clock_timestamp() - swept_at)::float8 AS swept_s,
                CASE WHEN archiving THEN extract(epoch FROM clock_timestamp() -
                    (SELECT min(created_at) FROM assets WHERE state = 'pending'))::float8 END AS unarchived_s
            FROM account WHERE id = 1
        """)
    ).one()
    return Condition(*row)


_SECRETS = "SELECT webhook_secrets, extract(epoch FROM clock_timestamp())::float8 FROM account WHERE id = 1"


def secrets(tx: Connection) -> list[str]:
    """The webhook secrets that may be believed now, newest first; empty before the first was fetched."""
    kept, now = tx.execute(text(_SECRETS)).one()
    return [entry["secret"] for entry in kept if not entry["retired_at"] or now - entry["retired_at"] < FORMER_SECRET_S]


def claim_secret_fetch(tx: Connection, *, every_s: float) -> bool:
    """Take the right to fetch the webhook secret; one process gets it, once in *every_s* seconds, none while halted."""
    statement = text("""
        UPDATE account SET secrets_fetched_at = clock_timestamp()
        WHERE id = 1 AND halted_reason IS NULL AND (secrets_fetched_at IS NULL
                          OR secrets_fetched_at <= clock_timestamp() - make_interval(secs => :every_s))
        RETURNING id
    """)
    return tx.execute(statement, {"every_s": every_s}).first() is not None


def forget_secret_fetch(tx: Connection, *, again_s: float, every_s: float) -> None:
    """A fetch failed: allow the next one in *again_s* seconds instead of *every_s*."""
    statement = text("""
        UPDATE account SET secrets_fetched_at = clock_timestamp() - make_interval(secs => :since_s) WHERE id = 1
    """)
    tx.execute(statement, {"since_s": max(every_s - again_s, 0)})


def keep_secret(tx: Connection, secret: str) -> bool:
    """Make *secret* the present one; the former is believed for ten minutes more. True when it is new."""
    row = tx.execute(
        text(
            "SELECT webhook_secrets, extract(epoch FROM clock_timestamp())::float8 FROM account WHERE id = 1 FOR UPDATE"
        )
    ).one()
    kept, now = row
    if kept and kept[0]["secret"] == secret:
        return False
    former = [dict(entry, retired_at=entry["retired_at"] or now) for entry in kept if entry["secret"] != secret]
    fresh = [{"secret": secret, "retired_at": None}, *former][:3]
    tx.execute(text("UPDATE account SET webhook_secrets = CAST(:kept AS jsonb)"), {"kept": json.dumps(fresh)})
    return True


_TAKE_LEASE = text(f"""
    UPDATE account SET reconciler = :worker_id, reconciler_until = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE id = 1 AND halted_reason IS NULL
      AND (reconciler IS NULL OR reconciler = :worker_id OR reconciler_until < clock_timestamp()
           OR NOT EXISTS (
               SELECT 1 FROM workers w WHERE w.id = account.reconciler AND NOT {DEAD}))
    RETURNING id
""")


def lease_list(tx: Connection, worker_id: UUID, *, lease_s: float, dead_after_s: float) -> bool:
    """
    Become, or stay, the one process that reads the provider's list, for *lease_s* seconds.

    A holder whose heartbeat is older than *dead_after_s* seconds holds nothing.
    """
    parameters = {"worker_id": worker_id, "lease_s": lease_s, "dead_after_s": dead_after_s}
    return tx.execute(_TAKE_LEASE, parameters).first() is not None


def end_lease(tx: Connection, worker_id: UUID) -> None:
    """Give the lease back."""
    tx.execute(
        text("UPDATE account SET reconciler = NULL, reconciler_until = NULL WHERE id = 1 AND reconciler = :worker_id"),
        {"worker_id": worker_id},
    )


def grant_polls(tx: Connection, at_most: int, *, per_minute: int) -> int:
    """
    How many of the polls that are due, and of *at_most*, the budget allows all processes together; they are spent.

    The budget is the time up to which it is spent: it may run at most 10 s ahead of the clock. A halted
    account has none.
    """
    statement = text("""
        WITH wanted AS (
            SELECT count(*) AS n FROM (
                SELECT FROM jobs WHERE due_at <= statement_timestamp() AND state IN ('processing', 'expired')
                LIMIT :at_most) d
        ), spent AS (
            SELECT greatest(coalesce(polls_paid_until, clock_timestamp()), clock_timestamp()) AS until
            FROM account WHERE id = 1 AND halted_reason IS NULL AND (SELECT n FROM wanted) > 0 FOR UPDATE
        ), granted AS (
            SELECT until, least((SELECT n FROM wanted), greatest(0, 1 + floor(
                extract(epoch FROM clock_timestamp() + make_interval(secs => 10) - until) / :each_s)))::int AS n
            FROM spent
        )
        UPDATE account SET polls_paid_until = until + make_interval(secs => n * :each_s)
        FROM granted WHERE id = 1 RETURNING n
    """)
    row = tx.execute(statement, {"at_most": at_most, "each_s": 60.0 / per_minute}).first()
    return int(row.n) if row else 0
