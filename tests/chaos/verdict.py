"""The judgement: every promise, and the cases in which it was not kept. Pure: evidence in, breaches out."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pipeline.jobs import FINAL, TOLD, TRANSITIONS, State
from tests.chaos.evidence import Evidence, Row

Breaches = Mapping[str, Sequence[str]]
"""By promise: what broke it, one line a case. A promise that was kept stands there with none."""

_ACCEPTED = 0.95
"""Callers who gave up are few: were they many, all other promises would be easy to keep."""

_STATES = {f"job.{state}": state for state in State}


def judge(evidence: Evidence, *, list_input: bool) -> Breaches:
    """
    Hold the evidence against every promise.

    Where the provider's list shows inputs (*list_input*), every job must have come to its end, and each was paid for
    exactly once. Where it does not, a job may be held for a person instead, and then need not have been paid for.
    """
    case = _Case(evidence, list_input=list_input)
    promises = {
        "no accepted job is lost": case.lost(),
        "no job is made twice": case.doubled(),
        "every job is final" if list_input else "every job is final or held": case.unfinished(),
        "every state is the provider's": case.wrong_states(),
        "every job has its own output": case.wrong_outputs(),
        "one charge for each job" if list_input else "at most one charge for each job": case.charges(),
        "no forged callback is believed": case.forgeries(),
        "every history is legal": case.histories(),
        "every end is told once": case.untold(),
        "no caller is refused": case.refusals(),
        "nearly every order is accepted": case.unaccepted(),
    }
    return {promise: list(breaches) for promise, breaches in promises.items()}


class _Case:
    """The evidence, looked up by what identifies it."""

    def __init__(self, evidence: Evidence, *, list_input: bool) -> None:
        self._evidence = evidence
        self._list_input = list_input
        self._jobs = {row["id"]: row for row in evidence.jobs}
        self._charges = {row["prediction_id"]: row for row in evidence.charges}

    def unaccepted(self) -> Iterator[str]:
        orders = self._evidence.orders
        accepted = sum(1 for order in orders if order.ids)
        if accepted < _ACCEPTED * len(orders):
            yield f"only {accepted} of {len(orders)} orders were accepted"

    def lost(self) -> Iterator[str]:
        keys = {row["key"]: row["job_id"] for row in self._evidence.keys}
        for order in self._evidence.orders:
            if len(order.ids) > 1:
                yield f"order {order.number}: its caller was given {len(order.ids)} ids: {', '.join(sorted(order.ids))}"
            for job_id in order.ids:
                if job_id not in self._jobs:
                    yield f"order {order.number}: accepted as {job_id}, which does not exist"
                elif keys.get(order.key) != job_id:
                    yield f"order {order.number}: accepted as {job_id}, its key names {keys.get(order.key)}"
                elif self._jobs[job_id]["prompt"] != order.prompt:
                    yield f"order {order.number}: {job_id} is a job with another prompt"

    def doubled(self) -> Iterator[str]:
        ordered = {order.prompt for order in self._evidence.orders}
        for prompt, count in Counter(row["prompt"] for row in self._evidence.jobs).items():
            if count > 1:
                yield f"{count} jobs for: {prompt}"
            if prompt not in ordered:
                yield f"nobody ordered: {prompt}"

    def unfinished(self) -> Iterator[str]:
        for job in self._evidence.jobs:
            held = job["held_reason"] is not None and not self._list_input
            if job["state"] not in FINAL and not held:
                yield f"{job['id']} is {job['state']}" + (f", held: {job['held_reason']}" if job["held_reason"] else "")

    def wrong_states(self) -> Iterator[str]:
        for job in self._ended():
            charge = self._charges.get(job["prediction_id"])
            if charge is None:
                yield f"{job['id']} is {job['state']} by the task {job['prediction_id']}, which nobody made"
            elif charge["status"] != job["state"]:
                yield f"{job['id']} is {job['state']}, its task {charge['prediction_id']} is {charge['status']}"
        by_prompt = {job["prompt"]: job for job in self._evidence.jobs}
        for charge in self._evidence.charges:
            owner = by_prompt.get(charge["prompt"])
            if owner is not None and owner["state"] in FINAL and owner["state"] != charge["status"]:
                yield f"{owner['id']} is {owner['state']}, a task for its prompt is {charge['status']}"

    def wrong_outputs(self) -> Iterator[str]:
        for job in self._ended():
            charge = self._charges.get(job["prediction_id"])
            if charge is not None and charge["prompt"] != job["prompt"]:
                yield f"{job['id']} has the task of another prompt: {charge['prediction_id']}"
            urls = [output["url"] for output in job["outputs"] or ()]
            if any(f"/predictions/{job['prediction_id']}/" not in url for url in urls):
                yield f"{job['id']} has the outputs of another task"
            if bool(urls) != (job["state"] == State.COMPLETED):
                yield f"{job['id']} is {job['state']} with {len(urls)} outputs"

    def charges(self) -> Iterator[str]:
        counts = Counter(charge["prompt"] for charge in self._evidence.charges)
        for job in self._evidence.jobs:
            count = counts.pop(job["prompt"], 0)
            if count > 1 or (count == 0 and (self._list_input or job["state"] in FINAL)):
                yield f"{job['id']} ({job['state']}) was charged {count} times"
        for prompt, count in counts.items():
            yield f"charged {count} times for what is no job: {prompt}"
        accepted = Counter(row["job_id"] for row in self._evidence.attempts if row["outcome"] == "accepted")
        for job_id, count in accepted.items():
            if count > 1:
                yield f"{job_id} has {count} accepted attempts"

    def forgeries(self) -> Iterator[str]:
        forged = [row for row in self._evidence.deliveries if row["kind"] == "forged"]
        kept = {row["signature"] for row in self._evidence.callbacks}
        for delivery in forged:
            if delivery["signature"] in kept:
                yield f"the forged delivery {delivery['id']} is in the inbox"
            if any(200 <= (entry["status"] or 0) < 300 for entry in delivery["tries"]):
                yield f"the forged delivery {delivery['id']} was answered as an authentic one"
        for job in self._evidence.jobs:
            if "forged" in str(job["outputs"]) or (job["error"] or {}).get("message") == "forged":
                yield f"{job['id']} shows what a forger said"

    def histories(self) -> Iterator[str]:
        events: defaultdict[str, list[Row]] = defaultdict(list)
        for event in self._evidence.events:
            events[event["job_id"]].append(event)
        for job in self._evidence.jobs:
            problem = _broken(events.pop(job["id"], []), job)
            if problem:
                yield f"{job['id']}: {problem}"
        for job_id in events:
            yield f"{job_id}: a history of no job"

    def untold(self) -> Iterator[str]:
        told = Counter((row["job_id"], row["event"]) for row in self._evidence.notifications)
        for job in self._evidence.jobs:
            for state in TOLD:
                count = told[job["id"], f"job.{state}"]
                if count > 1 or (count == 0 and job["state"] == state):
                    yield f"{job['id']} is {job['state']}; job.{state} is told {count} times"

    def refusals(self) -> Iterator[str]:
        for order in self._evidence.orders:
            for status in order.refusals:
                yield f"order {order.number}: answered {status}"

    def _ended(self) -> Iterator[Row]:
        return (job for job in self._evidence.jobs if job["state"] in FINAL)


def _broken(history: Sequence[Row], job: Row) -> str:
    """What is wrong with a job's history; empty when nothing is."""
    if [event["seq"] for event in history] != list(range(1, job["last_seq"] + 1)):
        return "lines are missing"
    if history[0]["kind"] != "job.queued":
        return f"it begins with {history[0]['kind']}"
    state = State.QUEUED
    for event in history[1:]:
        target = _STATES.get(event["kind"])
        if target is None:
            continue  # it tells something, and moves nothing
        if event["data"].get("from") != state:
            return f"line {event['seq']} moves it from {event['data'].get('from')}, and it was {state}"
        if target not in TRANSITIONS.get(state, ()):
            return f"line {event['seq']} moves it from {state} to {target}"
        state = target
    return "" if state == job["state"] else f"it ends as {state}, and the job is {job['state']}"
