"""Whom the client calls, and as whom."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from pipeline import __version__
from pipeline.client.steps import Call

CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the pipeline is, and the service's key, which is never shown."""

    url: str
    key: str = field(repr=False)

    @classmethod
    def of(cls, url: str | None, key: str | None) -> Self:
        """
        Take what is given, else PIPELINE_URL and PIPELINE_KEY of the environment.

        Raises:
            ValueError: One is missing, or cannot be what it is meant to be.
        """
        url = (url or os.environ.get("PIPELINE_URL", "")).strip().rstrip("/")
        key = (key or os.environ.get("PIPELINE_KEY", "")).strip()
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise ValueError("The pipeline's address (url, or PIPELINE_URL) must begin with https:// or http://.")
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError("The service's key (key, or PIPELINE_KEY) is missing, or is not one.")
        return cls(url, key)

    def request(self, call: Call) -> dict[str, Any]:
        """Give the arguments of the request that *call* is."""
        headers: Mapping[str, str] = {"User-Agent": f"wavespeed-pipeline/{__version__}", **call.headers}
        if not call.outside:
            headers = {"Authorization": f"Bearer {self.key}", "Accept": "application/json", **headers}
        return {
            "method": call.method,
            "url": call.target if call.outside else self.url + call.target,
            "params": dict(call.params) or None,
            "headers": headers,
            "content": call.content,
            "timeout": httpx2.Timeout(call.answer_s, connect=CONNECT_S),
        }
