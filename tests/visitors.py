"""A person at the dashboard, whose browser runs no script: it keeps cookies, and sends forms as they stand."""

import html
import re
from typing import Any

import httpx2

OPERATORS_PASSWORD = "correct horse battery"
VIEWERS_PASSWORD = "staple of the viewers"

_TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


class Visitor:
    """One browser at one dashboard."""

    def __init__(self, url: str) -> None:
        self.client = httpx2.Client(base_url=url, follow_redirects=True, timeout=30.0)
        self.token = ""

    def close(self) -> None:
        self.client.close()

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Open a page."""
        answer = self.client.get(path, **options)
        found = _TOKEN.search(answer.text) if answer.headers.get("content-type", "").startswith("text/html") else None
        self.token = html.unescape(found[1]) if found else self.token
        return answer

    def post(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> httpx2.Response:
        """Send a form of the page that was opened last."""
        answer = self.client.post(path, data={"csrf_token": self.token, **(fields or {})}, **options)
        found = _TOKEN.search(answer.text)
        self.token = html.unescape(found[1]) if found else self.token
        return answer

    def sign_in(self, name: str, password: str, *, path: str = "/login") -> httpx2.Response:
        self.get(path)
        return self.post(path, {"name": name, "password": password})
