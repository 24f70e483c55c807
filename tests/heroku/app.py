"""One app of the double: config, add-ons, builds, releases and dynos.

From Heroku's documentation: every change of config or add-ons makes a release; a release of a slug whose Procfile has
`release` runs that first, in a one-off dyno with the new config, and becomes the current one only if it succeeds;
then all dynos are restarted with it. The first release of a slug starts one web dyno.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.heroku import slug
from tests.heroku.dynos import Dyno, Router
from tests.platform import Ending

USER = {"id": str(uuid4()), "email": "cook@example.com"}
REGIONS = {name: str(uuid4()) for name in ("us", "eu")}
STACKS = {name: str(uuid4()) for name in ("heroku-22", "heroku-24", "heroku-26")}
FIRST_SIZE = "basic"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Stream:
    """Output that can be read while it grows."""

    def __init__(self) -> None:
        self.id = str(uuid4())
        self.data = b""
        self.ended = False
        self.changed = threading.Condition()

    def say(self, line: str) -> None:
        with self.changed:
            self.data += f"{line}\n".encode()
            self.changed.notify_all()

    def has_more(self, start: int) -> bool:
        return len(self.data) > start or self.ended

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


@dataclass
class Slug:
    folder: Path
    types: dict[str, str]
    id: str = field(default_factory=lambda: str(uuid4()))


@dataclass
class Release:
    version: int
    description: str
    slug: Slug | None
    config: dict[str, str]
    status: str = "succeeded"
    current: bool = False
    stream: Stream | None = None
    id: str = field(default_factory=lambda: str(uuid4()))
    created_at: str = field(default_factory=now)


@dataclass
class Build:
    blob: dict[str, Any]
    status: str = "pending"
    release: Release | None = None
    slug: Slug | None = None
    stream: Stream = field(default_factory=Stream)
    id: str = field(default_factory=lambda: str(uuid4()))
    created_at: str = field(default_factory=now)


@dataclass
class AddOn:
    name: str
    plan: str
    provisioned_at: float  # time.monotonic()'s clock
    config_vars: list[str] = field(default_factory=lambda: ["DATABASE_URL"])
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def state(self) -> str:
        return "provisioned" if time.monotonic() >= self.provisioned_at else "provisioning"


@dataclass
class ProcessType:
    command: str
    quantity: int
    size: str
    id: str = field(default_factory=lambda: str(uuid4()))


class App:
    """An app that runs; `folder` is for its slugs and its log, `cache` for what builds keep."""

    def __init__(self, name: str, region: str, stack: str, folder: Path, cache: Path) -> None:
        self.name, self.region, self.stack, self.build_stack = name, region, stack, stack
        self.id = str(uuid4())
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True)
        self.log_file = folder / "log"
        self.log_file.touch()
        self.lock = threading.RLock()
        self.config: dict[str, str] = {}
        self.addons: list[AddOn] = []
        self.releases: list[Release] = []
        self.builds: list[Build] = []
        self.types: dict[str, ProcessType] = {}
        self.domains: list[str] = []
        self.buildpacks: list[str] = []
        self.acm = False
        self.dynos: list[Dyno] = []
        self.endings: list[Ending] = []
        self.created_at = now()
        self.router = Router(self._web_ports)
        self._stopping: list[threading.Thread] = []
        self.release("Initial release")

    # --- releases ---

    @property
    def current(self) -> Release | None:
        return next((one for one in reversed(self.releases) if one.current), None)

    def release(self, description: str, made: Slug | None = None) -> Release:
        """Make a release of the current config, and of a new slug if there is one."""
        with self.lock:
            current = self.current
            used = made or (current.slug if current else None)
            release = Release(len(self.releases) + 1, description, used, dict(self.config))
            self.releases.append(release)
            if used and "release" in used.types:
                release.status, release.stream = "pending", Stream()
                threading.Thread(target=self._run_phase, args=[release], daemon=True).start()
            else:
                self._activate(release)
        return release

    def _run_phase(self, release: Release) -> None:
        assert release.slug is not None and release.stream is not None
        log = self.folder / f"release-{release.version}"
        dyno = Dyno(
            f"release.{release.version}",
            release.slug.types["release"],
            release.slug.folder,
            release.config,
            size=FIRST_SIZE,
            log=log,
        )
        ended = dyno.container.wait(600)
        code = dyno.container.process.returncode if ended else None
        dyno.close()
        for line in log.read_text(errors="replace").splitlines():
            release.stream.say(line)
        with self.lock:
            if code == 0:
                self._activate(release)
            release.status = "succeeded" if code == 0 else "failed"
        release.stream.end()

    def _activate(self, release: Release) -> None:
        for one in self.releases:
            one.current = one is release
        if release.slug:
            first = not self.types
            for name, command in release.slug.types.items():
                known = self.types.get(name)
                quantity = known.quantity if known else int(first and name == "web")
                self.types[name] = ProcessType(command, quantity, known.size if known else FIRST_SIZE)
        self.restart()

    # --- builds ---

    def build(self, blob: dict[str, Any], source: bytes) -> Build:
        build = Build(blob)
        with self.lock:
            self.builds.append(build)
        threading.Thread(target=self._run_build, args=[build, source], daemon=True).start()
        return build

    def _run_build(self, build: Build, source: bytes) -> None:
        say = build.stream.say
        try:
            checksum = build.blob.get("checksum")
            if checksum and checksum != f"SHA256:{hashlib.sha256(source).hexdigest()}":
                raise slug.BuildError(" !     the checksum is another")
            folder = self.folder / f"slug{len(self.builds)}"
            types = slug.build(source, folder, self.cache, say)
            made = Slug(folder, types)
            with self.lock:
                self.stack = self.build_stack
                release = self.release(f"Deploy {(build.blob.get('version') or '')[:8]}", made)
                build.slug, build.release = made, release
                say(f"-----> Launching... v{release.version}")
                build.status = "succeeded"
        except Exception as error:  # noqa: BLE001 (whatever it is, the build has failed)
            say(str(error))
            say(" !     Push failed")
            build.status = "failed"
        finally:
            build.stream.end()

    # --- dynos ---

    def _web_ports(self) -> list[int]:
        return [dyno.port for dyno in list(self.dynos) if dyno.kind == "web" and not dyno.stopping]

    def restart(self) -> None:
        """Stop all dynos and start the ones that the formation has, at the same time."""
        with self.lock:
            for dyno in self.dynos:
                self._stop(dyno)
            self.dynos = []
            self.scale()

    def scale(self) -> None:
        """Start and stop dynos until the formation is as it should be."""
        with self.lock:
            current = self.current
            if not (current and current.slug):
                return
            wanted = [(f"{name}.{n + 1}", one) for name, one in self.types.items() for n in range(one.quantity)]
            names = {name for name, _ in wanted}
            for dyno in [one for one in self.dynos if one.name not in names]:
                self._stop(dyno)
                self.dynos.remove(dyno)
            have = {dyno.name: dyno for dyno in self.dynos}
            for name, one in wanted:
                if name in have and have[name].size == one.size:
                    continue
                if name in have:
                    self._stop(have[name])
                    self.dynos.remove(have[name])
                started = Dyno(name, one.command, current.slug.folder, current.config, size=one.size, log=self.log_file)
                started.version = current.version
                self.dynos.append(started)

    def _stop(self, dyno: Dyno) -> None:
        dyno.stopping = True
        thread = threading.Thread(target=lambda: self.endings.append(dyno.stop()), daemon=True)
        thread.start()
        self._stopping.append(thread)

    def stopping(self) -> bool:
        """Whether a dyno is on its way out."""
        return any(thread.is_alive() for thread in self._stopping)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def close(self) -> None:
        """End everything."""
        with self.lock:
            for dyno in self.dynos:
                dyno.close()
            self.dynos = []
        for thread in self._stopping:
            thread.join(60)
        self.router.shutdown()
        self.router.server_close()
