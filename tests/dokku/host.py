"""What the Dokku double runs for `ssh dokku@…`: Dokku's commands on a folder of state, with Docker and git for real.

sshd starts this file as the forced command; it needs nothing but Python, git, docker and nginx. What it imitates,
as seen on Dokku 0.38.27:

- words: the command is split by `xargs -n 1`, whose echo swallows `-n` and ends a word at a line break; no shell.
- exit codes: 20 for an app that is not there, 1 for a failure, 2 for a bad flag; `enter` and `run` give the
  command's own.
- already so: `apps:create`, `storage:mount`, `postgres:create` and `postgres:link` fail; `buildpacks:add` adds a
  duplicate; whatever `…:set` sets is taken without a look, and an empty value unsets.
- config: `config:set` and `config:unset` restart unless `--no-restart`; `config:import` prints each value unless
  `--quiet` comes first.
- ps:scale fails where app.json has `formation`.
- app.json's `cron` is looked at before anything is started: a command without shell operators, a schedule of five
  fields or a word like @daily, a policy that Dokku knows. `cron:run`, which is what stands in the host's crontab, runs
  an entry in a container of its own with the app's variables and mounts; its exit code is the command's. The double
  has no clock.
- git push: what is up to date builds nothing; a branch that is not the deploy-branch (master unless set) is taken
  and not built; what can't be deployed is refused, and the containers before run on. `git:report` says `HEAD`.
- order: build, `scripts.dokku.predeploy`, Procfile's `release`, the new container and its checks from app.json,
  nginx, SIGTERM to the old container at once, `docker stop` after wait-to-retire; with checks disabled the old one is
  stopped first.
- a container: docker-init as PID 1, PORT, DYNO, GIT_REV, a memory limit with twice the swap, the restart policy
  (on-failure:10 unless set), so that one that ends with 0 stays down and nginx answers 502. One that Docker starts
  again may have another address: dokku-event-listener, which Dokku's package recommends, tells nginx.
- `ps:inspect` hides the values of variables but of those that begin with DOKKU_ and some more.
- a `ps:rebuild` that fails leaves the app locked, and its build's `status` at "running" for good; `display_status`
  tells the truth. `apps:unlock` removes the lock.
- where no Docker can run, dynos.py is `docker` and says what is then missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HOST = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["DOKKU_DOUBLE"])
SETTINGS = json.loads((HOST / "host.json").read_text())  # plugins, domain, nginx's port, postgres's addresses

# Each plugin's properties with Dokku's defaults, which `computed-…` reports where nothing is set.
PROPERTIES = {
    "app-json": {"appjson-path": "app.json"},
    "builder": {"selected": "", "build-dir": "", "skip-cleanup": "false"},
    "builder-dockerfile": {"dockerfile-path": "Dockerfile"},
    "checks": {"wait-to-retire": "60"},
    "git": {"deploy-branch": "master", "keep-git-dir": "false"},
    "nginx": {"proxy-read-timeout": "60s", "proxy-send-timeout": "60s", "client-max-body-size": "1m"},
    "ps": {"procfile-path": "Procfile", "restart-policy": "on-failure:10", "stop-timeout-seconds": "30"},
}
SHOWN = ("CACHE_PATH=", "DOCKER_", "DOKKU_", "DYNO=", "PATH=", "PORT=", "USER=")


class DokkuError(Exception):
    """A command that fails; the message goes to stderr behind Dokku's mark."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class App:
    """One app's state, kept in a JSON file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = HOST / "apps" / name
        if not self.folder.is_dir():
            raise DokkuError(f"App {name} does not exist", 20)
        self.state = json.loads((self.folder / "state.json").read_text())

    @classmethod
    def create(cls, name: str) -> None:
        folder = HOST / "apps" / name
        if folder.exists():
            raise DokkuError("Name is already taken")
        folder.mkdir(parents=True)
        state = {
            "config": {},
            "properties": {},
            "scale": {"web": 1},
            "buildpacks": [],
            "build_options": [],
            "builds": [],
        }
        state |= {
            "builds": [],
            "mounts": [],
            "memory": "",
            "disabled": [],
            "domains": [],
            "links": [],
            "containers": {},
            "cron": [],
        }
        state |= {"port": 0 if SETTINGS["domain"] else SETTINGS["port"], "can_scale": True}
        if SETTINGS["domain"]:
            state["domains"] = [f"{name}.{SETTINGS['domain']}"]
        else:
            state["config"]["NO_VHOST"] = "1"
        (folder / "state.json").write_text(json.dumps(state))

    def save(self) -> None:
        new = self.folder / f"state.{os.getpid()}"
        new.write_text(json.dumps(self.state, indent=1))
        new.replace(self.folder / "state.json")

    def get(self, plugin: str, name: str) -> str:
        """A property as it is in effect."""
        return self.state["properties"].get(plugin, {}).get(name) or PROPERTIES[plugin][name]

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


def say(text: str) -> None:
    if "--quiet" not in FLAGS:
        print(text, flush=True)


def docker(*words: str, check: bool = True) -> str:
    """Run docker; its output is returned, or shown and raised as a failure."""
    environ = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(["docker", *words], capture_output=True, text=True, env=environ, check=False)
    if done.returncode and check:
        for line in (done.stdout + done.stderr).splitlines():
            say(f" !     {line}")
        raise DokkuError(f"docker {words[0]} failed")
    return done.stdout.strip()


# --- reports ---


def report(plugin: str, words: list[str]) -> None:
    app = App(words[0])
    if words[1:] != ["--format", "json"]:
        print(f"=====> {app.name} {plugin} information")
        return
    own, known = app.state["properties"].get(plugin, {}), PROPERTIES.get(plugin, {})
    found = {name: own.get(name, "") for name in known}
    found |= {f"computed-{name}": own.get(name) or default for name, default in known.items()}
    print(json.dumps(found | further(app.state).get(plugin, {})))


def further(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What reports have beside the properties that can be set."""
    links = [f"--link dokku.postgres.{service}:dokku-postgres-{service}" for service in state["links"]]
    ports = [{"scheme": "http", "host_port": state["port"] or SETTINGS["port"], "container_port": 5000}]
    return {
        "buildpacks": {"list": ",".join(state["buildpacks"])},
        "checks": {"disabled-list": ",".join(state["disabled"]) or "none"},
        "docker-options": {"build-list": state["build_options"] + links, "deploy-list": links},
        "domains": {"app-vhosts": " ".join(state["domains"]), "app-enabled": str(bool(state["domains"])).lower()},
        "git": {"sha": "HEAD"},
        "ports": {"map-json": "null", "map-detected-json": json.dumps(ports)},
        "ps": {"can-scale": str(state["can_scale"]).lower(), "deployed": str(bool(state["containers"])).lower()},
        "resource": {"_default_.limit.memory": state["memory"]} if state["memory"] else {},
    }


def set_property(plugin: str, words: list[str]) -> None:
    app, (name, *value) = App(words[0]), words[1:]
    if name not in PROPERTIES[plugin]:
        raise DokkuError(f"Invalid property specified, valid properties include: {', '.join(PROPERTIES[plugin])}")
    app.state["properties"].setdefault(plugin, {})[name] = " ".join(value)
    app.save()
    say(f"=====> {'Setting' if value else 'Unsetting'} {name}")


# --- apps ---


def apps_create(words: list[str]) -> None:
    App.create(words[0])
    say(f"-----> Creating {words[0]}...")


def apps_exists(words: list[str]) -> None:
    App(words[0])


def apps_destroy(words: list[str]) -> None:
    app = App(words[0])
    if "--force" not in FLAGS:
        raise DokkuError("Confirmation was not given")
    for container in app.state["containers"].values():
        docker("rm", "--force", "--volumes", container, check=False)
    subprocess.run(["rm", "-rf", str(app.folder)], check=True)
    write_nginx()


def apps_lock(words: list[str]) -> None:
    App(words[0]).lock.touch()


def apps_locked(words: list[str]) -> None:
    if not App(words[0]).lock.exists():
        raise DokkuError("Deploy lock does not exist")
    say("Deploy lock exists")


def apps_unlock(words: list[str]) -> None:
    App(words[0]).lock.unlink()


# --- config ---


def config_export(words: list[str]) -> None:
    (name,) = (word for word in words if word not in ("--format", "json"))
    print(json.dumps(App(name).state["config"]))


def config_import(words: list[str]) -> None:
    flags, (name, source) = words[:-2], words[-2:]
    app, values = App(name), json.loads(sys.stdin.read()) if source == "-" else {}
    if not all(isinstance(value, str) for value in values.values()):
        raise DokkuError("all values must be strings")
    app.state["config"] = values if "--replace" in flags else app.state["config"] | values
    app.save()
    say("-----> Setting config vars")
    for key, value in values.items():
        say(f"       {key}:  {value}")
    restart_unless_told(app, flags)


def config_set(words: list[str]) -> None:
    flags, (name, *pairs) = long_options(words)
    app, values = App(name), dict(pair.split("=", 1) for pair in pairs)
    app.state["config"] |= values
    app.save()
    for key, value in values.items():
        say(f"       {key}:  {value}")
    restart_unless_told(app, flags)


def config_unset(words: list[str]) -> None:
    flags, (name, *keys) = long_options(words)
    app = App(name)
    for key in keys:
        app.state["config"].pop(key, None)
    app.save()
    restart_unless_told(app, flags)


def config_get(words: list[str]) -> None:
    config = App(words[0]).state["config"]
    if words[1] not in config:
        raise DokkuError("")
    print(config[words[1]])


def config_keys(words: list[str]) -> None:
    print("\n".join(sorted(App(words[0]).state["config"])))


def long_options(words: list[str]) -> tuple[list[str], list[str]]:
    flags = [word for word in words if word.startswith("-")]
    for flag in flags:
        if flag not in ("--no-restart", "--encoded", "--replace"):
            raise DokkuError(f"unknown shorthand flag: {flag}", 2)
    return flags, [word for word in words if not word.startswith("-")]


def restart_unless_told(app: App, flags: list[str]) -> None:
    if "--no-restart" not in flags and app.state["containers"]:
        deploy(app, app.state["image"])


# --- what stands in lists ---


def buildpacks_add(words: list[str]) -> None:
    app, buildpack = App(words[0]), words[1]
    if short := re.fullmatch(r"([\w-]+)/([\w-]+)", buildpack, re.ASCII):
        owner = "heroku" if short[1] == "heroku-community" else short[1]
        buildpack = f"https://github.com/{owner}/heroku-buildpack-{short[2]}.git"
    elif not re.match(r"(http|https|git)(://|@)[^/:]+[/:][^/:]+/.", buildpack):
        raise DokkuError(f"Invalid buildpack specified: {buildpack}")
    app.state["buildpacks"].append(buildpack)  # a duplicate too
    app.save()


def buildpacks_clear(words: list[str]) -> None:
    app = App(words[0])
    app.state["buildpacks"] = []
    app.save()


def docker_options(words: list[str], *, add: bool) -> None:
    """Each flag with its values is kept for itself, quoted where a shell would need it; all are sorted."""
    app, options = App(words[0]), " ".join(words[2:])
    flags: list[list[str]] = []
    for word in shlex.split(options):
        if not flags or (word.startswith("-") and word != "-"):
            flags.append([])
        flags[-1].append(word)
    lines = {" ".join(map(quoted, flag)) for flag in flags}
    kept = set(app.state["build_options"])
    app.state["build_options"] = sorted(kept | lines if add else kept - lines)
    app.save()


def quoted(word: str) -> str:
    if not re.search(r"""[\s"'$`\\*?\[\]<>|&;(){}!#~]""", word or " "):
        return word
    escaped = word.replace("'", "'\\''")
    return f"'{escaped}'"


def resource_limit(words: list[str]) -> None:
    app = App(words[-1])
    app.state["memory"] = words[words.index("--memory") + 1]
    app.save()


def resource_clear(words: list[str]) -> None:
    app = App(words[-1])
    app.state["memory"] = ""
    app.save()


def domains_set(words: list[str]) -> None:
    app = App(words[0])
    app.state["domains"] = words[1:]
    app.state["config"].pop("NO_VHOST", None)
    app.save()
    write_nginx()


def storage_directory(words: list[str]) -> None:
    folder = HOST / "storage" / words[-1]
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"heroku": 1000, "herokuish": 32767}[words[words.index("--chown") + 1]]
    os.chown(folder, owner, owner)
    say("       Directory ready for mounting")


def storage_mount(words: list[str]) -> None:
    app, mount = App(words[0]), words[1]
    if mount in app.state["mounts"]:
        raise DokkuError("Mount path already exists.")
    app.state["mounts"].append(mount)
    app.save()


def storage_list(words: list[str]) -> None:
    pairs = [mount.split(":", 1) for mount in App(words[0]).state["mounts"]]
    print(json.dumps([{"host_path": host, "container_path": container} for host, container in pairs]))


def checks_disable(words: list[str]) -> None:
    app = App(words[0])
    app.state["disabled"] = sorted({*app.state["disabled"], *words[1].split(",")})
    app.save()


# --- services ---


def postgres(command: str, words: list[str]) -> None:
    """The postgres plugin, on a server that the test runs."""
    service, root = words[0], HOST / "services"
    made = root / service
    if command in ("exists", "linked"):
        there = made.exists() if command == "exists" else service in App(words[1]).state["links"]
        if not there:
            raise DokkuError(f"Postgres service {service} is not there or not linked")
    elif command == "create":
        if made.exists():
            raise DokkuError(f"Postgres service {service} already exists")
        root.mkdir(exist_ok=True)
        psql(f'CREATE DATABASE "{service}" OWNER dyno')
        made.touch()
    elif command == "link":
        app = App(words[1])
        if service in app.state["links"]:
            raise DokkuError("Already linked as DATABASE_URL")
        if words[2:] != ["--no-restart"] and app.state["containers"]:
            raise DokkuError("the double links before the first deployment, or with --no-restart")
        app.state["links"].append(service)
        app.state["config"]["DATABASE_URL"] = f"{SETTINGS['postgres']}/{service}"
        app.save()
    elif command == "destroy":
        psql(f'DROP DATABASE "{service}" WITH (FORCE)')
        made.unlink()


def psql(statement: str) -> None:
    subprocess.run(
        [SETTINGS["psql"], "--quiet", "--command", statement, SETTINGS["postgres_admin"]],
        check=True,
        capture_output=True,
    )


# --- processes ---


def ps_scale(words: list[str]) -> None:
    if words[1:] == ["--format", "json"]:
        scale = App(words[0]).state["scale"]
        print(json.dumps([{"process_type": name, "quantity": number} for name, number in scale.items()]))
        return
    flags = [word for word in words if word.startswith("--")]
    name, *pairs = [word for word in words if not word.startswith("--")]
    app = App(name)
    if not app.state["can_scale"]:
        raise DokkuError(f"App {name} contains an app.json file with a formations key and cannot be manually scaled")
    app.state["scale"] |= {kind: int(number) for kind, number in (pair.split("=") for pair in pairs)}
    app.save()
    if "--skip-deploy" not in flags and app.state["containers"]:
        deploy(app, app.state["image"])


def ps_inspect(words: list[str]) -> None:
    containers = App(words[0]).state["containers"]
    if not containers:
        raise DokkuError('"docker container inspect" requires at least 1 argument')
    found = json.loads(docker("inspect", *containers.values()))
    for one in found:
        environ = one["Config"]["Env"]
        one["Config"]["Env"] = [
            entry if entry.startswith(SHOWN) else entry.partition("=")[0] + "=XXXXXX" for entry in environ
        ]
    print(json.dumps(found))


def ps_rebuild(words: list[str]) -> None:
    app = App(words[0])
    branch = app.repository / "refs" / "heads" / app.get("git", "deploy-branch")
    if not branch.is_file():
        raise DokkuError(f"App {app.name} has not been deployed")
    locked_build(app, branch.read_text().strip(), pushed=False)


def ps_restart(words: list[str]) -> None:
    app = App(words[0])
    deploy(app, app.state["image"])


def enter(words: list[str]) -> int:
    """`enter APP web CMD…`: runs it in the container; the exit code is the command's own."""
    app, (kind, *command) = App(words[0]), words[1:]
    if command[:1] == ["--"]:
        command = command[1:]
    container = app.state["containers"].get(kind if "." in kind else f"{kind}.1")
    if container is None:
        raise DokkuError(f"No containers found for type '{kind}'")
    return subprocess.run(["docker", "exec", "--interactive", container, *command], check=False).returncode


def logs(words: list[str]) -> None:
    for dyno, container in App(words[0]).state["containers"].items():
        done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False)
        for line in (done.stdout + done.stderr).splitlines():
            print(f"app[{dyno}]: {line}")


def cron_entry(app: App, entry: dict[str, str]) -> dict[str, str]:
    """An entry of app.json's `cron` as `cron:list` shows it."""
    command, schedule = entry.get("command", ""), entry.get("schedule", "")
    policy = entry.get("concurrency_policy", "allow")
    if not command or set(shlex.shlex(command, punctuation_chars=True)) & {";", "&", "&&", "|", "||", ">", "<"}:
        raise DokkuError(f"Invalid cron command for app {app.name} (command {command!r})")
    if len(schedule.split()) != 5 and schedule not in ("@hourly", "@daily", "@weekly", "@monthly", "@yearly"):
        raise DokkuError(f"Invalid cron schedule for app {app.name} (schedule {schedule})")
    if policy not in ("allow", "forbid", "replace"):
        raise DokkuError(f"Invalid cron concurrency policy for app {app.name} (schedule {schedule}): {policy}")
    name = f"{app.name}==={command}==={schedule}".encode().hex()
    return {"id": name, "app": app.name, "command": command, "schedule": schedule, "concurrency_policy": policy}


def cron_list(words: list[str]) -> None:
    print(json.dumps(App(words[0]).state["cron"]))


def cron_run(words: list[str]) -> int:
    """`cron:run APP ID`: runs the entry in a container of its own; the exit code is the command's own."""
    app = App(words[0])
    for entry in app.state["cron"]:
        if entry["id"] == words[1]:
            options = ["--rm", *environment(app), *volumes(app), "--env=DYNO=cron.1"]
            command = ["docker", "run", *options, app.state["image"], *shlex.split(entry["command"])]
            return subprocess.run(command, check=False).returncode
    raise DokkuError("No matching Cron ID found.")


def builds_list(words: list[str]) -> None:
    builds = App(words[0]).state["builds"]
    for one in builds:
        broken_off = one["status"] == "running" and not Path(f"/proc/{one['pid']}").exists()
        one["display_status"] = "abandoned" if broken_off else one["status"]
    print(json.dumps(builds))


# --- building and deploying ---


def git(words: list[str]) -> int:
    """git's side of a push or ls-remote: the real programs on a real repository."""
    program, name = words[0], words[1].strip("'").lstrip("/")
    if not (HOST / "apps" / name).is_dir():
        App.create(name)
    app = App(name)
    if not app.repository.is_dir():
        subprocess.run(["git", "init", "--quiet", "--bare", str(app.repository)], check=True)
        hook = app.repository / "hooks" / "pre-receive"
        hook.write_text(f"#!/bin/sh\nexec {shlex.join([sys.executable, __file__, str(HOST), 'pre-receive', name])}\n")
        hook.chmod(0o755)
    return subprocess.run([program, str(app.repository)], check=False).returncode


def pre_receive(name: str) -> None:
    """Deploy what is pushed to the deploy-branch; what fails is refused."""
    app = App(name)
    for line in sys.stdin.read().splitlines():
        _, new, reference = line.split()
        if reference == f"refs/heads/{app.get('git', 'deploy-branch')}":
            locked_build(app, new, pushed=True)
        else:
            say(f"-----> WARNING: deploy did not complete, you must push to {app.get('git', 'deploy-branch')}.")


def locked_build(app: App, commit: str, *, pushed: bool) -> None:
    """Build and deploy under the app's lock. A rebuild that fails leaves it; a push that fails does not."""
    with app.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DokkuError(f"{app.name} currently has a deploy lock in place. Exiting...") from None
        app.state["builds"].insert(0, {"kind": "build", "status": "running", "pid": os.getpid()})
        app.state["config"]["GIT_REV"], end = commit, "failed"
        app.save()
        try:
            deploy(app, build(app, commit))
            end = "succeeded"
        except DokkuError:
            end = "failed" if pushed else "running"
            raise
        finally:
            app = App(app.name)
            app.state["builds"][0]["status"] = end
            app.save()
            if end != "running":
                app.lock.unlink(missing_ok=True)


def build(app: App, commit: str) -> str:
    """The image's tag. The files are kept beside, for app.json and Procfile."""
    files = app.folder / "files"
    subprocess.run(["rm", "-rf", str(files)], check=True)
    files.mkdir()
    environ = {**os.environ, "GIT_DIR": str(app.repository)}  # with the quarantine of what is being pushed
    archive = subprocess.Popen(["git", "archive", commit], stdout=subprocess.PIPE, env=environ)
    subprocess.run(["tar", "-x", "-C", str(files)], stdin=archive.stdout, check=True)
    if archive.wait():
        raise DokkuError("App build failed")
    builder = app.get("builder", "selected") or detected(files)
    if builder != "dockerfile":
        raise DokkuError(f"Unable to pull the image of the builder {builder}")
    dockerfile = files / app.get("builder-dockerfile", "dockerfile-path")
    say(f"-----> Building {app.name} from Dockerfile")
    options = [word for option in app.state["build_options"] for word in shlex.split(option)]
    tag = f"dokku-double/{app.name}:{HOST.name}-{commit[:12]}"
    docker("build", "--quiet", *options, "--file", str(dockerfile), "--tag", tag, str(files))
    return tag


def detected(files: Path) -> str:
    """Which builder Dokku chooses by itself."""
    if (files / "project.toml").exists():
        return "pack"
    return "dockerfile" if (files / "Dockerfile").exists() else "herokuish"


def deploy(app: App, image: str) -> None:
    """Predeploy, release, new containers with their checks, nginx, the end of the old ones."""
    files = app.folder / "files"
    description = files / app.get("app-json", "appjson-path")
    app_json = json.loads(description.read_text()) if description.is_file() else {}
    procfile = (files / app.get("ps", "procfile-path")).read_text()
    types = dict(line.split(": ", 1) for line in procfile.splitlines() if ": " in line)
    app.state["can_scale"] = "formation" not in app_json
    for kind, one in app_json.get("formation", {}).items():
        app.state["scale"][kind] = one["quantity"]
    app.state["cron"] = [cron_entry(app, one) for one in app_json.get("cron", [])]
    task(app, image, app_json.get("scripts", {}).get("dokku", {}).get("predeploy", ""), "predeploy")
    task(app, image, types.get("release", ""), "release")
    old = dict(app.state["containers"])
    new: dict[str, str] = {}
    try:
        for kind, count in app.state["scale"].items():
            for number in range(1, count + 1 if kind in types else 1):
                dyno = f"{kind}.{number}"
                if kind in app.state["disabled"] and dyno in old:
                    stop(app, old[dyno])
                new[dyno] = start(app, image, dyno, shlex.split(types[kind]))
                if kind not in app.state["disabled"]:
                    checked(app, new[dyno], app_json.get("healthchecks", {}).get(kind, []))
    except DokkuError:
        for container in new.values():
            docker("rm", "--force", "--volumes", container, check=False)
        raise
    app.state |= {"containers": new, "image": image}
    app.save()
    write_nginx()
    retire(app, list(old.values()))
    say("=====> Application deployed:")


def task(app: App, image: str, command: str, name: str) -> None:
    if not command:
        return
    say(f"       Executing {name} task: {command}")
    done = subprocess.run(
        ["docker", "run", "--rm", *environment(app), *volumes(app), image, *shlex.split(command)],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in (done.stdout + done.stderr).splitlines():
        say(f"{' !     ' if done.returncode else '       '}{line}")
    if done.returncode:
        raise DokkuError(f"Execution of {name} task failed: {command}")


def environment(app: App) -> list[str]:
    """Options for the app's variables; the file they stand in is read by docker before this process ends."""
    path = app.folder / "environ"
    path.write_text("".join(f"{name}={value}\n" for name, value in app.state["config"].items()))
    path.chmod(0o600)
    return ["--env-file", str(path)]


def volumes(app: App) -> list[str]:
    real = str(HOST / "storage")
    return [f"--volume={mount.replace('/var/lib/dokku/data/storage', real)}" for mount in app.state["mounts"]]


def start(app: App, image: str, dyno: str, command: list[str]) -> str:
    limits = [f"--memory={app.state['memory']}"] if app.state["memory"] else []
    policy = f"--restart={app.get('ps', 'restart-policy')}"
    words = ["--detach", "--init", policy, *limits, *environment(app), *volumes(app)]
    return docker(
        "run", *words, f"--env=DYNO={dyno}", "--env=PORT=5000", f"--label=dokku-double={HOST.name}", image, *command
    )


def checked(app: App, container: str, checks: list[dict[str, object]]) -> None:
    """The checks of app.json; without any, to be up for ten seconds."""
    for check in checks:
        for _ in range(int(check.get("attempts", 3))):
            if answers(container, check):
                break
            time.sleep(float(check.get("wait", 5)))
        else:
            logged = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False)
            for line in (logged.stdout + logged.stderr).splitlines():
                say(f"       {line}")
            raise DokkuError(f"Healthcheck failed name='{check.get('name')}'")
        say(f"       Healthcheck succeeded name='{check.get('name')}'")
    if not checks:
        time.sleep(10)
        if docker("inspect", "--format={{.State.Running}}", container) != "true":
            raise DokkuError("App container failed to start")


def address(container: str) -> str:
    """Where the container listens; empty if it does not run. In the dyno double each has a port of its own."""
    found = docker("inspect", "--format={{.NetworkSettings.IPAddress}}", container)
    return found if not found or ":" in found else f"{found}:5000"


def answers(container: str, check: dict[str, object]) -> bool:
    try:
        url = f"http://{address(container)}{check.get('path', '/')}"
        with urllib.request.urlopen(url, timeout=float(check.get("timeout", 5))):
            return True
    except (OSError, ValueError):
        return False


def stop(app: App, container: str) -> None:
    docker("update", "--restart=no", container, check=False)
    docker("stop", "--time", app.get("ps", "stop-timeout-seconds"), container, check=False)


def retire(app: App, containers: list[str]) -> None:
    """SIGTERM at once; the rest after wait-to-retire, by a process that outlives this one."""
    for container in containers:
        docker("kill", "--signal=SIGTERM", container, check=False)
    if not containers or os.fork():
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    time.sleep(float(app.get("checks", "wait-to-retire")))
    for container in containers:
        stop(app, container)
        docker("rm", "--volumes", container, check=False)
    os._exit(0)


def started(container: str) -> None:
    """Tell nginx the new address of an app's container that was started again."""
    for folder in (HOST / "apps").iterdir():
        if container in App(folder.name).state["containers"].values():
            write_nginx()


def write_nginx() -> None:
    """nginx's server for every app, and its reload."""
    blocks = []
    for folder in sorted((HOST / "apps").iterdir()):
        if not (folder / "state.json").exists():
            continue
        app = App(folder.name)
        webs = [address(one) for dyno, one in app.state["containers"].items() if dyno.startswith("web.")]
        servers = "".join(f"server {one}; " for one in webs if one) or "server 127.0.0.1:1; "
        names = " ".join(app.state["domains"]) or "_"
        blocks.append(
            f"upstream {app.name} {{ {servers}}}\n"
            f"server {{ listen 127.0.0.1:{SETTINGS['port']}; server_name {names};\n"
            f"location / {{ proxy_pass http://{app.name}; proxy_http_version 1.1; proxy_set_header Host $http_host;\n"
            f"proxy_read_timeout {app.get('nginx', 'proxy-read-timeout')};\n"
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; } }\n"
        )
    new = HOST / "nginx" / f"apps.{os.getpid()}"
    new.write_text("".join(blocks))
    new.replace(HOST / "nginx" / "apps.conf")  # a deployment and `started` may write at the same time
    subprocess.run([*SETTINGS["nginx"], "-s", "reload"], check=True, capture_output=True)


# --- the command line ---

COMMANDS = {
    "apps:create": apps_create,
    "apps:exists": apps_exists,
    "apps:destroy": apps_destroy,
    "apps:lock": apps_lock,
    "apps:locked": apps_locked,
    "apps:unlock": apps_unlock,
    "builds:list": builds_list,
    "buildpacks:add": buildpacks_add,
    "buildpacks:clear": buildpacks_clear,
    "checks:disable": checks_disable,
    "config:export": config_export,
    "config:get": config_get,
    "config:import": config_import,
    "config:keys": config_keys,
    "config:set": config_set,
    "config:unset": config_unset,
    "cron:list": cron_list,
    "cron:run": cron_run,
    "docker-options:add": lambda words: docker_options(words, add=True),
    "docker-options:remove": lambda words: docker_options(words, add=False),
    "domains:set": domains_set,
    "enter": enter,
    "logs": logs,
    "ps:inspect": ps_inspect,
    "ps:rebuild": ps_rebuild,
    "ps:restart": ps_restart,
    "ps:scale": ps_scale,
    "resource:limit": resource_limit,
    "resource:limit-clear": resource_clear,
    "storage:ensure-directory": storage_directory,
    "storage:list": storage_list,
    "storage:mount": storage_mount,
    "version": lambda _: print("dokku version 0.38.27"),
    "plugin:list": lambda _: print("\n".join(f"  {one}  1.0.0 enabled    a plugin" for one in SETTINGS["plugins"])),
}
FLAGS: list[str] = []


def run(words: list[str]) -> int:
    while words and words[0] in ("--quiet", "--force", "--trace"):
        FLAGS.append(words.pop(0))
    name, arguments = (words[0], words[1:]) if words else ("help", [])
    with (HOST / "commands.log").open("a") as log:
        log.write(shlex.join([*FLAGS, *words]) + "\n")
    plugin, _, verb = name.partition(":")
    if name in ("git-receive-pack", "git-upload-pack"):
        return git(words)
    if name in COMMANDS:
        return COMMANDS[name](arguments) or 0
    if plugin == "postgres" and "postgres" in SETTINGS["plugins"]:
        postgres(verb, arguments)
    elif verb == "report":
        report(plugin, arguments)
    elif verb == "set" and plugin in PROPERTIES:
        set_property(plugin, arguments)
    else:
        raise DokkuError(f"`{name}` is not a dokku command.")
    return 0


def main() -> int:
    try:
        if len(sys.argv) > 2 and sys.argv[2] == "pre-receive":
            pre_receive(sys.argv[3])
            return 0
        if len(sys.argv) > 2 and sys.argv[2] == "started":
            started(sys.argv[3])
            return 0
        line = os.environ.get("SSH_ORIGINAL_COMMAND", "")
        split = subprocess.run(["xargs", "-n", "1"], input=line, capture_output=True, text=True, check=False)
        return run([word for word in split.stdout.splitlines() if word])
    except DokkuError as failure:
        print(f" !     {failure}", file=sys.stderr)
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
