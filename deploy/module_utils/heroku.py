"""A client of Heroku's Platform API, version 3, for the modules heroku_….

Requests that may safely be sent again are: what was refused with 429, what never left this machine, and whatever
is not a POST. A POST whose answer got lost may have taken effect, so it is never repeated: the next run reads first.
"""

from __future__ import annotations

import http.client
import json
import netrc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.live import Live

DEFAULT_URL = "https://api.heroku.com"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TIMEOUT = 30  # seconds for an answer
UPLOAD_TIMEOUT = 300
PAUSES = (1, 2, 4, 8, 15, 30)  # seconds before each further try, unless Retry-After says more
LONGEST_PAUSE = 120

# What to do about an error, by its id or its status; Heroku's own message goes before it.
ADVICE = {
    "verification_needed": "Heroku wants a payment card on file: https://heroku.com/verify",
    "two_factor": "use a key that needs no second factor: `heroku authorizations:create`",
    "suspended": "the account or app is suspended: ask Heroku's support",
    401: "HEROKU_API_KEY is not accepted: set it to what `heroku auth:token` prints, or `heroku login` again",
    402: "pay the open invoice at https://dashboard.heroku.com/account/billing",
    403: "the app is another account's, or your role does not allow this: use another APP, or another key",
    404: "it is not there (any more): run this again",
    409: "another change of the app is under way: wait for it and run this again",
    422: "correct the value in deploy/inventory.yml or on the command line",
    429: "the limit of requests an hour is used up: run this again later",
}


class HerokuError(Exception):
    """A request that failed; the message is one line: what is wrong, where, what to do. `status` is 0 for no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Heroku:
    """Sends requests with the user's key. `sleep` is passed in, so that tests need no real time."""

    def __init__(self, url: str, key: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = safe_url(url, "HEROKU_API_URL")
        self._key = key
        self._sleep = sleep

    @classmethod
    def from_environment(cls) -> Heroku:
        """With HEROKU_API_KEY or what `heroku login` left in ~/.netrc. Raises HerokuError if there is neither."""
        url = os.environ.get("HEROKU_API_URL") or DEFAULT_URL
        return cls(url, os.environ.get("HEROKU_API_KEY") or _key_of_login(urlsplit(url).hostname or ""))

    def get(self, path: str, **headers: str) -> Any:
        """What is at a path. Raises HerokuError, for every method here."""
        return self._send("GET", path, None, headers)

    def post(self, path: str, body: Any = None) -> Any:
        """Make something. Never sent a second time if it may have taken effect."""
        return self._send("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        """Change something."""
        return self._send("PATCH", path, body)

    def put(self, path: str, body: Any) -> Any:
        """Replace something."""
        return self._send("PUT", path, body)

    def delete(self, path: str) -> Any:
        """Remove something."""
        return self._send("DELETE", path, None)

    def upload(self, url: str, data: bytes) -> None:
        """PUT data where the Sources API said; the key does not go there."""
        safe_url(url, "the address for the source")
        headers = {"Content-Type": "", "Content-Length": str(len(data))}
        self._repeated("PUT", url, data, headers, UPLOAD_TIMEOUT)

    def stream(self, url: str, start: int, timeout: float) -> Iterator[bytes]:
        """The pieces of an output stream from byte `start` on, as they come. Raises OSError and HTTPException."""
        safe_url(url, "the address of the output")
        with closing(_connect(url, timeout)) as connection:
            connection.request("GET", _target(url), headers={"Range": f"bytes={start}-"} if start else {})
            response = connection.getresponse()
            if response.status == 416:  # nothing beyond `start`
                return
            if response.status >= 400:
                raise http.client.HTTPException(f"{response.status} {response.reason}")
            if start and response.status == 200:  # the whole of it again
                response.read(start)
            while piece := response.read1(65536):
                yield piece

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {
            "Accept": "application/vnd.heroku+json; version=3",
            "Authorization": f"Bearer {self._key}",
            "User-Agent": "double-boiler",
            **({} if data is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        }
        content = self._repeated(method, self.url + path, data, headers, TIMEOUT)
        try:
            return json.loads(content) if content else None
        except ValueError:
            raise HerokuError(f"{method} {path}: the answer is no JSON: is HEROKU_API_URL right?") from None

    def _repeated(self, method: str, url: str, data: bytes | None, headers: dict[str, str], timeout: float) -> bytes:
        """Send a request, again where that does no harm; returns the answer's body."""
        target = _target(url)
        for pause in (*PAUSES, None):
            sent = False
            try:
                with closing(_connect(url, timeout)) as connection:
                    connection.connect()
                    sent = True
                    connection.request(method, target, data, headers)
                    response = connection.getresponse()
                    content = response.read()
            except (OSError, http.client.HTTPException) as error:
                if sent and method == "POST":
                    raise HerokuError(
                        f"{method} {_shown(target)}: no answer ({_reason(error)}), so it may have taken effect: "
                        "run this again, it looks first"
                    ) from None
                if pause is None:
                    raise HerokuError(
                        f"{method} {urlsplit(url).netloc}{_shown(target)}: {_reason(error)}: "
                        "check the network, or run this again later"
                    ) from None
                self._wait(pause, _reason(error))
                continue
            if response.status < 400:
                return content
            may_repeat = response.status == 429 or (response.status >= 500 and method != "POST")
            if not may_repeat or pause is None:
                raise _explained(method, _shown(target), response.status, content)
            self._wait(min(max(pause, _retry_after(response)), LONGEST_PAUSE), f"Heroku answers {response.status}")
        raise AssertionError("the last try returns or raises")

    def _wait(self, seconds: float, why: str) -> None:
        with Live() as live:
            live.line(f"{why}: trying again in {seconds:g} s")
        self._sleep(seconds)


def safe_url(url: str, what: str) -> str:
    """The URL without a slash at its end. Raises HerokuError if what is sent there could be read on the way."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return url.rstrip("/")
    raise HerokuError(f"{what}: {url}: must begin with https://; http:// is for 127.0.0.1 alone")


def run_module(arguments: dict[str, Any], work: Callable[[dict[str, Any], Heroku, bool], dict[str, Any]]) -> None:
    """Be an Ansible module: `work(parameters, api, check)` returns the result; its errors end in one line."""
    module = AnsibleModule(arguments, supports_check_mode=True)
    try:
        result = work(module.params, Heroku.from_environment(), module.check_mode)
    except HerokuError as error:
        module.fail_json(msg=str(error))
    if warning := result.pop("warning", ""):
        module.warn(warning)
    module.exit_json(**result)


def read(api: Heroku, path: str, *, check: bool, otherwise: Any, **headers: str) -> Any:
    """What is at a path; in check mode `otherwise` if the app is still to be made."""
    try:
        return api.get(path, **headers)
    except HerokuError as error:
        if check and error.status == 404:
            return otherwise
        raise


def _key_of_login(host: str) -> str:
    try:
        login = netrc.netrc().authenticators(host)
    except FileNotFoundError:
        login = None
    except (OSError, netrc.NetrcParseError) as error:
        raise HerokuError(f"~/.netrc can't be read: {error}: correct it, or set HEROKU_API_KEY") from None
    if not (login and login[2]):
        raise HerokuError("no key for Heroku: `heroku login`, or set HEROKU_API_KEY to what `heroku auth:token` prints")
    return login[2]


def _connect(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=timeout)


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _shown(target: str) -> str:
    """A path for a message, without the query: the addresses of sources and outputs carry a token there."""
    return target.partition("?")[0]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(response: http.client.HTTPResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _explained(method: str, path: str, status: int, content: bytes) -> HerokuError:
    try:
        answer = json.loads(content)
        kind, message = str(answer["id"]), str(answer["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", http.client.responses.get(status, "")
    advice = ADVICE.get(kind) or ADVICE.get(status) or "run this again later; https://status.heroku.com has the news"
    if status >= 500 and method == "POST":
        advice = "it may have taken effect: run this again, it looks first"
    name = f"{status} {kind}".rstrip()
    return HerokuError(f"{method} {path}: {name}: {' '.join(message.split()).rstrip('.')}: {advice}", status)
