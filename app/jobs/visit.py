"""What a visitor of the web processes sees, and what each gunicorn worker tells of itself."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from boiler.settings import get

TIMEOUT = 10.0  # seconds for each of connecting and waiting for an answer
HEALTH_WAIT = 5.0  # seconds for /healthz to answer 200: an answer is kept for 1 s, a process comes back within 2
WORKERS_WAIT = 4.0  # seconds until every gunicorn worker should have answered
INTERVAL = 0.2  # seconds between two questions
AT_ONCE = 4  # requests at once for each expected worker
LONGEST = 1 << 20  # bytes of an answer that are looked at
# What Django's own error page says in development (django/views/templates/technical_404.html).
DEBUG_PAGE = "DEBUG = True"


@dataclass(frozen=True)
class Answer:
    """A status and a body; status 0 and the reason if there was no answer."""

    status: int
    body: str = ""
    cookies: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """The body's JSON object; an empty one if it is something else."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Site:
    """An address, and how to be let in there."""

    url: str
    token: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    page: str = "/"

    @classmethod
    def inside(cls) -> Site:
        """This dyno's gunicorn, with the headers that the platform's router would add."""
        names = [name.lstrip(".") for name in get("DJANGO_ALLOWED_HOSTS") if name != "*"] or ["localhost"]
        headers = {"Host": names[0], "X-Forwarded-Proto": "https"}
        bound = get("BIND_ADDRESS")
        address = "127.0.0.1" if bound in ("0.0.0.0", "::", "") else bound  # noqa: S104 (compared, not bound)
        return cls(f"http://{address}:{get('PORT')}", get("STATUS_TOKEN"), headers)

    def ask(self, path: str, method: str = "GET", timeout: float = TIMEOUT) -> Answer:
        """One request on a connection of its own; the token goes only where it is asked for."""
        url = urlsplit(self.url)
        headers = {**self.headers, "Connection": "close"}
        if path.startswith("/statusz"):
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            if url.scheme == "https":
                context = ssl.create_default_context()
                client: http.client.HTTPConnection = http.client.HTTPSConnection(
                    url.hostname or "", url.port, timeout=timeout, context=context
                )
            else:
                client = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
            try:
                client.request(method, url.path.rstrip("/") + path, headers=headers)
                response = client.getresponse()
                body = response.read(LONGEST).decode(errors="replace")
                return Answer(response.status, body, response.headers.get_all("Set-Cookie") or [])
            finally:
                client.close()
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, str(error) or type(error).__name__)


def look(site: Site, workers: int = 0, dyno: str = "") -> dict[str, Any]:
    """The page, the health, a page that is not there, and the reports of so many workers of this dyno."""
    page, missing = site.ask(site.page), site.ask("/a-page-that-is-not-there")
    deadline = monotonic() + HEALTH_WAIT
    while (health := site.ask("/healthz")).status == 503 and monotonic() < deadline:
        sleep(INTERVAL)
    found = {
        "url": site.url,
        "page": {"path": site.page, **_shown(page)},
        "health": {**_shown(health), "reasons": health.json().get("reasons", [])},
        "debug_page": DEBUG_PAGE in missing.body,
        "open_cookies": [cookie.split("=")[0] for cookie in page.cookies if "; secure" not in cookie.lower()],
    }
    return {**found, "workers": reports(site, workers, dyno)} if workers else found


def _shown(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status} if answer.status else {"status": 0, "error": answer.body}


def reports(site: Site, expected: int, dyno: str) -> list[dict[str, Any]]:
    """What the gunicorn workers of a dyno tell: pid, how many requests at once, all in its main thread or not.

    Which worker takes a request is for the router and the kernel to say: asks until all have served two at
    once, or WORKERS_WAIT is over.
    """
    found: dict[int, dict[str, Any]] = {}
    deadline = monotonic() + WORKERS_WAIT
    with ThreadPoolExecutor(AT_ONCE * expected) as pool:
        while monotonic() < deadline:
            for answer in pool.map(lambda _: site.ask("/statusz/worker"), range(AT_ONCE * expected)):
                report = answer.json()
                if answer.status == 200 and report.get("dyno") == dyno:
                    known = found.setdefault(report["pid"], report)
                    known["at_once"] = max(known["at_once"], report["at_once"])
                    known["main_thread"] = known["main_thread"] and report["main_thread"]
            if len(found) >= expected and all(report["at_once"] > 1 for report in found.values()):
                break
    return list(found.values())
