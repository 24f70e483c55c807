"""What answers on a Piku host: the commands of Piku that a deployment meets, its faults included.

Written after what a real Piku (July 2026, Debian 12) was seen to do. sshd runs it with the words of ssh's command
line. PIKU_ROOT is the host's folder; PIKU_PACKAGES an environment that has the packages of requirements.txt.
"""

from __future__ import annotations

import getpass
import grp
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["PIKU_ROOT"])
PACKAGES = Path(os.environ["PIKU_PACKAGES"])
APPS, ENVS, REPOS, DATA, LOGS, ENABLED = (
    ROOT / name for name in ("apps", "envs", "repos", "data", "logs", "uwsgi-enabled")
)
# Hosts have no such package: pip ends with an error.
UNKNOWN_PACKAGE = "no-such-package"


def say(text: str) -> None:
    print(text, flush=True)


def shell(command: str, folder: Path, environ: dict[str, str]) -> int:
    return subprocess.run(["/bin/sh", "-c", command], cwd=folder, env=environ, check=False).returncode


def settings(path: Path, known: dict[str, str] | None = None) -> dict[str, str]:
    """The lines of a settings file; `$NAME` and `${NAME}` are replaced where the name is known."""
    found = dict(known or {})
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.strip() and line[0] != "#":
            name, value = (part.strip() for part in line.split("=", 1))
            found[name] = re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda m: found.get(m[1] or m[2], m[0]), value)
    return found


def procfile(path: Path) -> dict[str, str]:
    pairs = [line.split(":", 1) for line in path.read_text().splitlines()] if path.exists() else []
    return {name.strip(): rest.strip() for name, rest in pairs}


def known(app: str) -> Path:
    """The app's folder; an unknown app ends the command with 1."""
    if not (APPS / app).exists():
        say(f"Error: app '{app}' not found.")
        sys.exit(1)
    return APPS / app


def enabled(app: str) -> list[Path]:
    """What is Piku's idea of an app's processes: every name that begins so."""
    return sorted(ENABLED.glob(f"{app}*.ini"))


def apps() -> None:
    names = sorted(path.name for path in APPS.iterdir())
    say("\n".join(("*" if enabled(name) else " ") + name for name in names) or "There are no applications deployed.")


def config(app: str) -> None:
    known(app)
    path = ENVS / app / "ENV"
    say(path.read_text().strip() if path.exists() else f"Warning: app '{app}' not deployed, no config found.")


def run(app: str, *words: str) -> None:
    """Always ends with 0."""
    folder = known(app)
    environ = settings(ENVS / app / "LIVE_ENV", dict(os.environ))
    shell(" ".join(words).removeprefix("-- "), folder, environ)


def deploy(app: str, commit: str = "") -> None:
    folder = known(app)
    say(f"-----> Deploying app '{app}'")
    subprocess.run(["git", "fetch", "--quiet"], cwd=folder, check=True)
    if commit:
        subprocess.run(["git", "reset", "--hard", commit], cwd=folder, check=True)
    install(app)
    environ = spawn(app)
    if release := procfile(folder / "Procfile").get("release"):
        say("-----> Releasing")
        if code := shell(release, folder, environ):
            say(f"-----> Exiting due to release command error value: {code}")
            sys.exit(code)


def install(app: str) -> None:
    """Make the packages' folder, and run pip where requirements.txt is newer than it; a failure changes nothing else.

    Instead of installing, the folder gets the packages of the environment that the tests have.
    """
    folder, wanted = ENVS / app, APPS / app / "requirements.txt"
    first = not (folder / "bin").exists()
    if first:
        say(f"-----> Creating virtualenv for '{app}'")
        (folder / "bin").mkdir(parents=True)
        for program in (PACKAGES / "bin").iterdir():
            (folder / "bin" / program.name).symlink_to(program)
        shutil.copy(PACKAGES / "pyvenv.cfg", folder / "pyvenv.cfg")
    if first or wanted.stat().st_mtime > folder.stat().st_mtime:
        say(f"-----> Running pip for '{app}'")
        if UNKNOWN_PACKAGE in wanted.read_text():
            say(f"ERROR: No matching distribution found for {UNKNOWN_PACKAGE}")
            os.utime(folder)
        elif not (folder / "lib").exists():
            (folder / "lib").symlink_to(PACKAGES / "lib")


def spawn(app: str) -> dict[str, str]:
    """Tell uWSGI what to run; returns the environment."""
    lines = {name: line for name, line in procfile(APPS / app / "Procfile").items() if name != "release"}
    environ = {
        "APP": app,
        "DATA_ROOT": str(DATA / app),
        "HOME": os.environ["HOME"],
        "USER": getpass.getuser(),
        "PATH": f"{ENVS / app / 'bin'}:{os.environ['PATH']}",
        "PWD": str(APPS / app),
        "VIRTUAL_ENV": str(ENVS / app),
    }
    environ = settings(ENVS / app / "ENV", environ)
    if "PORT" not in environ:
        with socket.socket() as probe:
            probe.bind(("", 0))
            environ["PORT"] = str(probe.getsockname()[1])
    environ.setdefault("BIND_ADDRESS", "127.0.0.1")
    if names := environ.get("NGINX_SERVER_NAME"):
        environ["NGINX_SERVER_NAME"] = " ".join(names.split(","))
    numbers = dict.fromkeys(lines, 1)
    scaling = {name: int(number) for name, number in procfile(ENVS / app / "SCALING").items()}
    numbers |= {name: number for name, number in scaling.items() if name in lines}
    write(ENVS / app / "LIVE_ENV", "=", environ)
    write(ENVS / app / "SCALING", ":", numbers)
    for path in enabled(app):
        path.unlink()
    for name, number in numbers.items():
        for index in range(1, number + 1):
            say(f"-----> spawning '{app}:{name}.{index}'")
            (ENABLED / f"{app}_{name}.{index}.ini").write_text(uwsgi(app, name, lines[name], index, environ))
    return environ


def uwsgi(app: str, name: str, line: str, index: int, environ: dict[str, str]) -> str:
    """What uWSGI is told for one process; values stand in it as they are."""
    pairs = {
        "chdir": str(APPS / app),
        "uid": getpass.getuser(),
        "gid": grp.getgrgid(os.getgid()).gr_name,
        "master": "true",
        "procname-prefix": f"{app}:{name}:",
        "logto2": str(LOGS / app / f"{name}.{index}.log"),
        "attach-daemon": line,
    }
    (LOGS / app).mkdir(exist_ok=True)
    if include := environ.get("UWSGI_INCLUDE_FILE"):
        pairs |= settings(APPS / app / include)
    variables = [("env", f"{name}={value}") for name, value in environ.items()]
    return "[uwsgi]\n" + "".join(f"{key} = {value}\n" for key, value in [*pairs.items(), *variables])


def write(path: Path, separator: str, pairs: dict[str, object]) -> None:
    path.write_text("".join(f"{name}{separator}{value}\n" for name, value in pairs.items()))


def stop(app: str) -> None:
    known(app)
    if not enabled(app):
        say(f"Error: app '{app}' not deployed!")
    for path in enabled(app):
        path.unlink()


def destroy(app: str) -> None:
    """The data stay."""
    known(app)
    for folder in (APPS, REPOS, ENVS, LOGS):
        shutil.rmtree(folder / app, ignore_errors=True)
    for path in enabled(app):
        path.unlink()


def scp(*words: str) -> None:
    """Always ends with 0; scp's own protocol carries its errors."""
    subprocess.run(["scp", *words], cwd=REPOS, check=False)


def receive(app: str) -> None:
    """Take a push; the hook's exit code reaches nobody."""
    repository = REPOS / app
    if not repository.exists():
        subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
        hook = repository / "hooks" / "post-receive"
        hook.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} git-hook {app}\n")
        hook.chmod(0o700)
    subprocess.run(["git-shell", "-c", f"git-receive-pack '{app}'"], cwd=REPOS, check=False)


def hook(app: str) -> None:
    for line in sys.stdin:
        commit = line.split()[1]
        if not (APPS / app).exists():
            say(f"-----> Creating app '{app}'")
            (DATA / app).mkdir(exist_ok=True)
            subprocess.run(["git", "clone", "--quiet", str(REPOS / app), str(APPS / app)], check=True)
        deploy(app, commit)


COMMANDS = {
    "apps": apps,
    "config": config,
    "deploy": deploy,
    "destroy": destroy,
    "git-hook": hook,
    "git-receive-pack": receive,
    "run": run,
    "scp": scp,
    "stop": stop,
}


def main(words: list[str]) -> None:
    os.environ.pop("GIT_DIR", None)  # a hook has it
    with (ROOT / "commands").open("a") as log:
        log.write(f"{' '.join(words)}\n")
    if not words or words[0] not in COMMANDS:
        say(f"Error: No such command '{' '.join(words[:1])}'.")
        sys.exit(2)
    COMMANDS[words[0]](*(word.strip("'/") if words[0].startswith("git-") else word for word in words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
