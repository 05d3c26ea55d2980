"""The work: is the account in order, does anybody do it, and are models and screens what jobs need."""

from collections.abc import Iterator

from pipeline.broker import SWEEP_S
from pipeline.errors import ConfigError
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.runtime import Runtime
from pipeline.store import account, catalogue, missing, screens, workers
from pipeline.store.alarms import DEAD_AFTER_S

SWEEP_LATE_S = 6 * SWEEP_S
LONG_S = 600.0
"""Nobody deploys for as long: whoever did the work is gone."""


def models(rt: Runtime) -> Finding:
    """Whether the default model is there."""
    known, model = rt.catalogue(), rt.settings.default_model
    if not known.known:
        words = "the catalogue was not read yet"
        return warn("models", "catalogue_unread", words, "pipeline models sync, or start a worker: it reads it")
    if not known.lists(model):
        near = known.nearest(model)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        words = f"DEFAULT_MODEL ({model}) is not in the provider's catalogue{hint}"
        return warn("models", "model_unknown", words, "set DEFAULT_MODEL to one of `pipeline models list`")
    with rt.db.transaction() as tx:
        paused = [one.id for one in catalogue.everything(tx) if one.paused_at]
    if model in paused:
        words = f"DEFAULT_MODEL ({model}) is paused"
        return warn("models", "model_paused", words, f"pipeline models resume {model}")
    return ok("models", f"DEFAULT_MODEL ({model}) is in the provider's catalogue")


def screen(rt: Runtime) -> Finding:
    """Whether prompts can be screened."""
    with rt.db.transaction() as tx:
        terms = len(screens.rows(tx))
    try:
        own = " and PROMPT_SCREEN" if rt.hook else ""
    except ConfigError as error:
        return fail("screen", "screen_broken", error.detail, "mend or unset PROMPT_SCREEN")
    return ok("screen", f"{terms} terms{own}; see `pipeline screens`")


def lost(rt: Runtime) -> Finding:
    """Whether the provider's list can prove that a lost POST never came to be."""
    with rt.db.transaction() as tx:
        lateness_s = missing.lateness_s(tx)
    if lateness_s is None:
        return ok("list", "what was lost and found again had shown in the provider's list in time")
    words = (
        f"the provider's list did not show a task of ours {lateness_s / 60:.0f} min after its POST, though it was made"
    )
    todo = "pipeline reconcile: was any job paid twice? For a week what is lost waits longer, see UNKNOWN_PATIENCE_S"
    return warn("list", "list_late", words, todo)


def work(rt: Runtime) -> Iterator[Finding]:
    """Whether the account lets us, and somebody does."""
    with rt.db.transaction() as tx:
        now = account.condition(tx)
        alive = workers.alive(tx, dead_after_s=DEAD_AFTER_S)
        untold_s = workers.untold_s(tx)
    if now.halted_reason:
        words = f"halted: {now.halted_reason}"
        yield fail("account", "account_halted", words, "a new key, or credit; then it resumes: see `pipeline account`")
    elif now.backoff_s:
        words = f"backing off for {now.backoff_s:.0f} s more"
        yield warn("account", "account_backing_off", words, "pipeline account")
    else:
        yield ok("account", "in order")

    swept = "never" if now.swept_s is None else f"{now.swept_s:.0f} s ago"
    if alive:
        yield ok("workers", f"{alive} alive")
    elif now.swept_s is None or now.swept_s < LONG_S:
        yield warn("workers", "workers_none", f"none is alive; the last sweep was {swept}", "start `worker`")
    else:
        words = f"none is alive, and nobody has swept for {now.swept_s / 60:.0f} min: jobs wait for good"
        yield fail("workers", "workers_gone", words, "start `worker`, and see why it left")
    if alive and untold_s is not None and untold_s > SWEEP_LATE_S:
        words = f"the workers have not heard it for {untold_s:.0f} s: they sweep by themselves, more slowly"
        yield warn("beat", "beat_away", words, "start one process `beat`; see whether it reaches the broker")
    elif alive:
        yield ok("beat", "heard by the workers")
    if now.swept_s is not None and now.swept_s <= SWEEP_LATE_S:
        yield ok("sweep", f"last run {swept}")
    elif alive:
        words = f"last run {swept}, though workers are alive: beat is away, and they do not sweep by themselves"
        yield warn("sweep", "sweep_late", words, "start `beat`; the workers' log says sweep.postponed, and why")
    else:
        yield warn("sweep", "sweep_late", f"last run {swept}", "start `worker` and `beat`")
