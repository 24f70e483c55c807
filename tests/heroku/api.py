"""The double's Platform API: an HTTP server that checks every request and every answer against the published schema.

`schema.json` has the structure of the endpoints used here, taken from Heroku's published JSON schema of the Platform
API, version 3 (MIT licence, (c) Heroku; in the platform-api gem as schema.json).
Where the double must differ from it: `web_url` is an address of this machine, and an app's update of its formation
may have `size` and a number as text, which Heroku's own command line sends.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import jsonschema
import psycopg

from tests.heroku.app import REGIONS, STACKS, USER, AddOn, App, Build, Release, Stream, now
from tests.heroku.dynos import SIZES

SCHEMA = json.loads((Path(__file__).parent / "schema.json").read_text())
SCHEMA["definitions"]["app"]["properties"]["web_url"].pop("pattern")
SCHEMA["definitions"]["team-app"]["properties"]["web_url"].pop("pattern")
ACCEPT = re.compile(r"application/vnd\.heroku\+json; ?version=3")
PROVISIONING = 0.5  # seconds that a new database takes


class ApiError(Exception):
    """An answer with an error: status, id, message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method to a path (a pattern).

    `status` and `kind` are the answer's, 0 for none: the connection is closed. `after` lets the request take effect
    first; `delay` is the seconds until all this happens.
    """

    method: str
    path: str
    status: int = 0
    kind: str = ""
    message: str = "the fault that the test asked for"
    times: int = 1
    after: bool = False
    delay: float = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    at: float  # time.monotonic()'s clock


class Double:
    """Heroku, at `url`, for the account with `key`.

    `admin` is the URL of a PostgreSQL's superuser, to which a database's name is added: the add-ons' databases are
    made there. `requests` has all requests to the API, `violations` what the schema does not allow.
    """

    def __init__(self, admin: str, cache: Path) -> None:
        self.admin, self.cache = admin, cache
        self.folder = Path(tempfile.mkdtemp(prefix="heroku-double-"))
        self.key = secrets.token_hex(16)
        self.apps: dict[str, App] = {}
        self.taken: set[str] = set()  # names of other accounts' apps
        self.streams: dict[str, Stream] = {}
        self.sources: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.violations: list[str] = []
        self.databases: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"double": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for app in list(self.apps.values()):
            self._remove(app)
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environ(self) -> dict[str, str]:
        """What makes the deployment use the double."""
        return {"HEROKU_API_URL": self.url, "HEROKU_API_KEY": self.key}

    def changes(self) -> list[str]:
        """The requests so far that could change something."""
        return [f"{one.method} {one.path}" for one in self.requests if one.method not in ("GET", "HEAD")]

    # --- what the endpoints do: a method for each ---

    def account(self) -> dict[str, Any]:
        return {**USER, "verified": True, "name": "A Cook", "created_at": now(), "updated_at": now(), "beta": False}

    def list_apps(self) -> list[Any]:
        return [shown_app(app) for app in self.apps.values()]

    def app(self, name: str) -> App:
        """An app by its name or id. Raises ApiError as Heroku does."""
        if name in self.taken:
            raise ApiError(403, "forbidden", f"You do not have access to the app {name}.")
        found = [one for one in self.apps.values() if name in (one.name, one.id)]
        if not found:
            raise ApiError(404, "not_found", "Couldn't find that app.")
        return found[0]

    def create_app(self, body: dict[str, Any]) -> Any:
        name = body.get("name") or f"app-{secrets.token_hex(4)}"
        if name in self.apps or name in self.taken:
            raise ApiError(422, "invalid_params", f"Name {name} is already taken")
        region, stack = body.get("region") or "us", body.get("stack") or "heroku-24"
        if region not in REGIONS or stack not in STACKS:
            raise ApiError(422, "invalid_params", f"{region} or {stack} is not known")
        self.apps[name] = App(name, region, stack, self.folder / name, self.cache)
        return shown_app(self.apps[name])

    def create_team_app(self, body: dict[str, Any]) -> Any:
        return {**self.create_app(body), "locked": False, "joined": True, "legacy_id": None}

    def update_app(self, app: App, body: dict[str, Any]) -> Any:
        if "build_stack" in body:
            if body["build_stack"] not in STACKS:
                raise ApiError(422, "invalid_params", f"{body['build_stack']} is not known")
            app.build_stack = body["build_stack"]
        return shown_app(app)

    def delete_app(self, app: App) -> Any:
        shown = shown_app(app)
        self._remove(app)
        return shown

    def enable_acm(self, app: App) -> Any:
        app.acm = True
        return shown_app(app)

    def list_addons(self, app: App) -> list[Any]:
        return [shown_addon(app, one) for one in app.addons]

    def get_addon(self, app: App, name: str) -> Any:
        return next(shown_addon(app, one) for one in app.addons if name in (one.id, one.name))

    def create_addon(self, app: App, body: dict[str, Any]) -> Any:
        if not body["plan"].startswith("heroku-postgresql:"):
            raise ApiError(422, "invalid_params", f"Couldn't find the plan {body['plan']}.")
        database = f"heroku_{secrets.token_hex(6)}"
        with psycopg.connect(f"{self.admin}postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database} OWNER dyno")
        self.databases.append(database)
        name = f"postgresql-round-{secrets.randbelow(90000) + 10000}"
        app.addons.append(AddOn(name, body["plan"], time.monotonic() + PROVISIONING))
        url = f"{self.admin}{database}".replace("postgres@", "dyno@", 1).replace("postgresql://", "postgres://", 1)
        app.config["DATABASE_URL"] = url
        app.release("Attach DATABASE")
        return shown_addon(app, app.addons[-1])

    def get_config(self, app: App) -> dict[str, str]:
        return dict(app.config)

    def update_config(self, app: App, body: dict[str, str | None]) -> dict[str, str]:
        with app.lock:
            before = dict(app.config)
            for name, value in body.items():
                if value is None:
                    app.config.pop(name, None)
                else:
                    app.config[name] = value
            if app.config != before:
                app.release(f"Set {', '.join(body)} config vars")
        return dict(app.config)

    def create_source(self, _app: App) -> Any:
        token = secrets.token_hex(16)
        url = f"{self.url}/sources/{token}?Signature={secrets.token_hex(8)}"
        return {"source_blob": {"get_url": url, "put_url": url}}

    def list_builds(self, app: App) -> list[Any]:
        return [self._shown_build(app, one) for one in app.builds]

    def get_build(self, app: App, identity: str) -> Any:
        return next(self._shown_build(app, one) for one in app.builds if one.id == identity)

    def create_build(self, app: App, body: dict[str, Any]) -> Any:
        blob = body["source_blob"]
        token = urlsplit(blob["url"]).path.rpartition("/")[2]
        if token not in self.sources:
            raise ApiError(422, "invalid_params", "The source could not be fetched.")
        if any(one.status == "pending" for one in app.builds):
            raise ApiError(409, "conflict", "Another build is in progress.")
        return self._shown_build(app, app.build(blob, self.sources[token]))

    def list_releases(self, app: App) -> list[Any]:
        return [self._shown_release(app, one) for one in app.releases]

    def get_release(self, app: App, identity: str) -> Any:
        found = [one for one in app.releases if identity in (one.id, str(one.version), f"v{one.version}")]
        return self._shown_release(app, found[0])

    def list_formation(self, app: App) -> list[Any]:
        return [shown_type(app, name) for name in app.types]

    def update_formation(self, app: App, body: dict[str, Any]) -> list[Any]:
        with app.lock:
            for update in body["updates"]:
                if update["type"] not in app.types:
                    raise ApiError(404, "not_found", f"Couldn't find the process type {update['type']}.")
                kind = app.types[update["type"]]
                size = (update.get("dyno_size") or {}).get("name") or update.get("size") or kind.size
                if size.lower() not in SIZES:
                    raise ApiError(422, "invalid_params", f"No such dyno size: {size}.")
                kind.size, kind.quantity = size.lower(), int(update.get("quantity", kind.quantity))
            app.scale()
        return [shown_type(app, update["type"]) for update in body["updates"]]

    def list_dynos(self, app: App) -> list[Any]:
        return [shown_dyno(app, one) for one in app.dynos]

    def list_domains(self, app: App) -> list[Any]:
        return [shown_domain(app, one) for one in app.domains]

    def create_domain(self, app: App, body: dict[str, Any]) -> Any:
        app.domains.append(body["hostname"])
        return shown_domain(app, body["hostname"])

    def list_buildpacks(self, app: App) -> list[Any]:
        return [
            {"ordinal": number, "buildpack": {"url": f"urn:buildpack:{name}", "name": name}}
            for number, name in enumerate(app.buildpacks)
        ]

    def update_buildpacks(self, app: App, body: dict[str, Any]) -> list[Any]:
        app.buildpacks = [one["buildpack"] for one in body["updates"]]
        return self.list_buildpacks(app)

    # --- what needs the double itself ---

    def _remove(self, app: App) -> None:
        app.close()
        self.apps.pop(app.name, None)
        if app.addons:
            with psycopg.connect(f"{self.admin}postgres", autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {app.config['DATABASE_URL'].rpartition('/')[2]} WITH (FORCE)")

    def _stream_url(self, stream: Stream) -> str:
        self.streams[stream.id] = stream
        return f"{self.url}/streams/{stream.id}?token=secret"

    def _shown_build(self, app: App, build: Build) -> dict[str, Any]:
        return {
            "app": {"id": app.id},
            "buildpacks": [one["buildpack"] for one in self.list_buildpacks(app)],
            "created_at": build.created_at,
            "id": build.id,
            "output_stream_url": self._stream_url(build.stream),
            "source_blob": {"version_description": None, "checksum": None, "version": None, **build.blob},
            "release": {"id": build.release.id} if build.release else None,
            "slug": {"id": build.slug.id} if build.slug else None,
            "stack": app.build_stack,
            "status": build.status,
            "updated_at": now(),
            "user": USER,
        }

    def _shown_release(self, app: App, release: Release) -> dict[str, Any]:
        shown = {
            "addon_plan_names": [one.plan for one in app.addons],
            "app": {"id": app.id, "name": app.name},
            "created_at": release.created_at,
            "description": release.description,
            "id": release.id,
            "updated_at": now(),
            "slug": {"id": release.slug.id} if release.slug else None,
            "status": release.status,
            "user": USER,
            "version": release.version,
            "current": release.current,
        }
        return {**shown, "output_stream_url": self._stream_url(release.stream)} if release.stream else shown


def shown_app(app: App) -> dict[str, Any]:
    return {
        "acm": app.acm,
        "archived_at": None,
        "buildpack_provided_description": "Python",
        "build_stack": {"id": STACKS[app.build_stack], "name": app.build_stack},
        "created_at": app.created_at,
        "git_url": f"https://git.heroku.com/{app.name}.git",
        "id": app.id,
        "internal_routing": False,
        "maintenance": False,
        "name": app.name,
        "owner": USER,
        "organization": None,
        "team": None,
        "region": {"id": REGIONS[app.region], "name": app.region},
        "released_at": app.releases[-1].created_at,
        "repo_size": None,
        "slug_size": None,
        "space": None,
        "stack": {"id": STACKS[app.stack], "name": app.stack},
        "updated_at": now(),
        "web_url": app.router.url,
    }


def shown_addon(app: App, addon: AddOn) -> dict[str, Any]:
    return {
        "actions": [],
        "addon_service": {"id": str(uuid4()), "name": addon.plan.partition(":")[0]},
        "billing_entity": {"id": app.id, "name": app.name, "type": "app"},
        "app": {"id": app.id, "name": app.name},
        "billed_price": {"cents": 500, "contract": False, "unit": "month"},
        "config_vars": addon.config_vars,
        "created_at": now(),
        "id": addon.id,
        "name": addon.name,
        "plan": {"id": str(uuid4()), "name": addon.plan},
        "provider_id": addon.id,
        "state": addon.state,
        "updated_at": now(),
        "web_url": None,
    }


def shown_type(app: App, name: str) -> dict[str, Any]:
    kind = app.types[name]
    size = kind.size.title().replace("1x", "1X").replace("2x", "2X")
    return {
        "app": {"id": app.id, "name": app.name},
        "command": kind.command,
        "created_at": app.created_at,
        "dyno_size": {"id": str(uuid4()), "name": size},
        "id": kind.id,
        "quantity": kind.quantity,
        "size": size,
        "type": name,
        "updated_at": now(),
    }


def shown_dyno(app: App, dyno: Any) -> dict[str, Any]:
    current = next(one for one in app.releases if one.version == dyno.version)
    return {
        "attach_url": None,
        "command": dyno.command,
        "created_at": current.created_at,
        "id": str(uuid4()),
        "name": dyno.name,
        "release": {"id": current.id, "version": current.version},
        "app": {"id": app.id, "name": app.name},
        "size": dyno.size,
        "state": dyno.state,
        "type": dyno.kind,
        "updated_at": now(),
    }


def shown_domain(app: App, hostname: str) -> dict[str, Any]:
    return {
        "acm_status": None,
        "acm_status_reason": None,
        "app": {"id": app.id, "name": app.name},
        "cname": f"{hostname.replace('.', '-')}.herokudns.com",
        "created_at": now(),
        "hostname": hostname,
        "id": str(uuid4()),
        "kind": "custom",
        "updated_at": now(),
        "status": "pending",
        "sni_endpoint": None,
    }


# Method and path to what does it; each "{}" is an argument, the first one an app.
ENDPOINTS: dict[str, Callable[..., Any]] = {
    "GET /account": Double.account,
    "GET /apps": Double.list_apps,
    "POST /apps": Double.create_app,
    "POST /teams/apps": Double.create_team_app,
    "GET /apps/{}": lambda _double, app: shown_app(app),
    "PATCH /apps/{}": Double.update_app,
    "DELETE /apps/{}": Double.delete_app,
    "POST /apps/{}/acm": Double.enable_acm,
    "GET /apps/{}/addons": Double.list_addons,
    "GET /apps/{}/addons/{}": Double.get_addon,
    "POST /apps/{}/addons": Double.create_addon,
    "GET /apps/{}/config-vars": Double.get_config,
    "PATCH /apps/{}/config-vars": Double.update_config,
    "POST /apps/{}/sources": Double.create_source,
    "GET /apps/{}/builds": Double.list_builds,
    "GET /apps/{}/builds/{}": Double.get_build,
    "POST /apps/{}/builds": Double.create_build,
    "GET /apps/{}/releases": Double.list_releases,
    "GET /apps/{}/releases/{}": Double.get_release,
    "GET /apps/{}/formation": Double.list_formation,
    "PATCH /apps/{}/formation": Double.update_formation,
    "GET /apps/{}/dynos": Double.list_dynos,
    "GET /apps/{}/domains": Double.list_domains,
    "POST /apps/{}/domains": Double.create_domain,
    "GET /apps/{}/buildpack-installations": Double.list_buildpacks,
    "PUT /apps/{}/buildpack-installations": Double.update_buildpacks,
}
ROUTES = {
    name: re.compile(re.escape(name).replace(r"\{\}", "([^/]+)").replace("{}", "([^/]+)") + "$") for name in ENDPOINTS
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/sources/"):
            return self._take_source(path)
        if path.startswith("/streams/"):
            return self._send_stream(path)
        self.double.requests.append(Request(self.command, path, time.monotonic()))
        fault = self._fault(path)
        if fault and not fault.after:
            return self._fail(fault)
        try:
            status, answer = self._answer(path)
        except ApiError as error:
            status, answer = error.status, {"id": error.kind, "message": error.message}
        if fault:
            return self._fail(fault)
        return self._send(status, answer)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self, path: str) -> tuple[int, Any]:
        if self.headers["Authorization"] != f"Bearer {self.double.key}":
            raise ApiError(401, "unauthorized", "Invalid credentials provided.")
        if not ACCEPT.match(self.headers["Accept"] or ""):
            self.double.violations.append(f"{self.command} {path}: Accept: {self.headers['Accept']}")
        for name, route in ROUTES.items():
            if match := route.match(f"{self.command} {path}"):
                return self._call(name, list(match.groups()))
        if not self._is_herokus_own():
            self.double.violations.append(f"{self.command} {path}: the double has no such endpoint")
        raise ApiError(404, "not_found", "The requested API endpoint was not found.")

    def _call(self, name: str, words: list[str]) -> tuple[int, Any]:
        endpoint = SCHEMA["endpoints"][name]
        arguments: list[Any] = [self.double.app(words[0]), *words[1:]] if words else []
        if "request" in endpoint:
            body = json.loads(self.body or b"{}")
            self._check(name, "request", body)
            arguments.append(body)
        answer = ENDPOINTS[name](self.double, *arguments)
        self._check(name, "response", answer)
        if isinstance(answer, list):
            return self._in_range(answer)
        return 201 if self.command == "POST" else 200, answer

    def _check(self, name: str, side: str, value: Any) -> None:
        schema = {"definitions": SCHEMA["definitions"], **SCHEMA["endpoints"][name][side]}
        if self._is_herokus_own() and (side, name) == ("request", "PATCH /apps/{}/formation"):
            return
        try:
            jsonschema.validate(value, schema, jsonschema.Draft4Validator, format_checker=jsonschema.FormatChecker())
        except jsonschema.ValidationError as error:
            self.double.violations.append(f"{name} {side}: {error.json_path}: {error.message}")
            if side == "request":
                raise ApiError(422, "invalid_params", error.message) from None

    def _is_herokus_own(self) -> bool:
        """Whether Heroku's command line asks: it uses more of the API, and is right by definition."""
        return "heroku-cli" in (self.headers["User-Agent"] or "")

    def _in_range(self, answer: list[Any]) -> tuple[int, list[Any]]:
        """Heroku's paging: the header Range chooses order and number."""
        asked = self.headers["Range"] or ""
        if "order=desc" in asked:
            answer = answer[::-1]
        most = int(found[1]) if (found := re.search(r"max=(\d+)", asked)) else 200
        return (206 if len(answer) > most else 200), answer[:most]

    def _fault(self, path: str) -> Fault | None:
        for fault in self.double.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _fail(self, fault: Fault) -> None:
        time.sleep(fault.delay)
        if fault.status:
            self._send(fault.status, {"id": fault.kind, "message": fault.message}, fault.headers)
        else:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response_only(status)
        for name, value in {
            "RateLimit-Remaining": "4499",
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _take_source(self, path: str) -> None:
        """The storage behind the Sources API, which signs the address without a content type."""
        wrong = self.headers["Authorization"] or self.headers["Content-Type"] or not parse_qs(urlsplit(self.path).query)
        if self.command != "PUT" or wrong:
            self.double.violations.append(f"{self.command} {path}: not what the signature is for")
            return self._send(403, {"id": "forbidden", "message": "SignatureDoesNotMatch"})
        self.double.sources[path.rpartition("/")[2]] = self.body
        return self._send(200, {})

    def _send_stream(self, path: str) -> None:
        """Output as it comes; a client that was cut off goes on with Range."""
        stream = self.double.streams[path.rpartition("/")[2]]
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers["Range"] or "")) else 0
        fault = self._fault(path)
        self.send_response_only(206 if start else 200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while True:
                with stream.changed:
                    stream.changed.wait_for(partial(stream.has_more, start), timeout=60)
                    piece, ended = stream.data[start:], stream.ended
                if piece:
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    start += len(piece)
                    if fault:
                        return self._fail(fault)
                elif ended:
                    self.wfile.write(b"0\r\n\r\n")
                    return None

    def log_message(self, *_: Any) -> None:
        """Silent."""
