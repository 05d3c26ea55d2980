"""A little of everything that can happen, so that each page has something to show."""

from dataclasses import dataclass
from typing import Any

import psycopg

from pipeline.embedded import api
from pipeline.embedded.processes import wait_until
from pipeline.embedded.stack import RunningStack


@dataclass(frozen=True)
class Happenings:
    """What happened: the pages of it, by name."""

    job_id: str
    failed_id: str
    pages: dict[str, str]


def job(product: RunningStack, prompt: str, **more: object) -> str:
    """Hand in a job."""
    status, made = api.call(
        "POST", f"{product.url}/v1/jobs", {"input": {"prompt": prompt}, **more}, key=product.api_key
    )
    assert status == 201, made
    return str(made["id"])


def ended(product: RunningStack, *job_ids: str) -> None:
    """Wait until these have ended."""

    def all_ended() -> bool:
        found = [api.call("GET", f"{product.url}/v1/jobs/{one}", key=product.api_key)[1] for one in job_ids]
        return all(
            one["state"] == "failed" or (one["state"] == "completed" and all(each["stored"] for each in one["outputs"]))
            for one in found
        )

    assert wait_until(all_ended, 60.0)


def database(product: RunningStack) -> psycopg.Connection[Any]:
    """What lies under the product, to bring about what would take hours."""
    url = product.database_url.replace("postgresql+psycopg://", "postgresql://")
    return psycopg.connect(url, options="-c search_path=pipeline")


def happen(product: RunningStack) -> Happenings:
    """Have it happen, and wait until it has."""
    prompts = ["a lighthouse in a storm, oil on canvas", "a mill", "a bridge <b>& more</b>", "[sandbox:fail] a cat"]
    job_ids = [job(product, prompt, metadata={"order": str(n)}) for n, prompt in enumerate(prompts)]
    nowhere = f"{product.sandbox_url}/nobody-listens-here"
    job_ids.append(job(product, "a castle [sandbox:nsfw]", callback_url=nowhere))
    ended(product, *job_ids)
    service = api.call("GET", f"{product.url}/v1/jobs/{job_ids[0]}", key=product.api_key)[1]["service"]
    return Happenings(
        job_id=job_ids[0],
        failed_id=job_ids[3],
        pages={
            "job": f"/jobs/{job_ids[0]}",
            "job-failed": f"/jobs/{job_ids[3]}",
            "playground-job": f"/playground?job={job_ids[0]}",
            "playground-model": "/playground?model=wavespeed-ai/flux-dev-lora",
            "service": f"/services/{service}",
        },
    )
