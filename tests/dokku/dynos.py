"""What the Dokku double runs as `docker` where no Docker can run: the dynos of tests/platform.py.

It knows what host.py says to docker and nothing else. What is then missing of a container: a file system, users and
addresses of its own (an image is a folder with this environment's packages, an address is a port of this machine), the
Dockerfile's build, mounts (so the app needs the postgres plugin), and the memory limit where no cgroup can be had.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.dyno import free_port
from tests.platform import DOKKU, Container, Limits
from tests.wait import wait_for

HOST = Path(sys.argv[1])
# What the image's Dockerfile sets.
OWN = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "HOME": str(HOST)}
FLAGS = ("--detach", "--init", "--rm", "--quiet", "--force", "--volumes", "--interactive")


def parse(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """docker's options, and the words behind them."""
    options: dict[str, list[str]] = {}
    while words and words[0].startswith("--"):
        name, equals, value = words.pop(0).partition("=")
        options.setdefault(name, []).append("" if name in FLAGS else value if equals else words.pop(0))
    return options, words


def folder_of(container: str) -> Path:
    return HOST / "dynos" / container


def image_of(tag: str) -> Path:
    return HOST / "images" / tag.replace("/", "_")


def read(container: str, name: str) -> dict[str, Any]:
    return json.loads((folder_of(container) / name).read_text())


def write(container: str, name: str, content: dict[str, Any]) -> None:
    new = folder_of(container) / f"{name}.new"
    new.write_text(json.dumps(content))
    new.replace(folder_of(container) / name)


def build(options: dict[str, list[str]], words: list[str]) -> int:
    """A folder with the app's files, this environment's packages and the static files."""
    image = image_of(options["--tag"][0])
    if not image.exists():
        shutil.copytree(words[0], image)
        collect = ["python", "app/manage.py", "collectstatic", "--noinput"]
        return subprocess.run(collect, cwd=image, env=OWN, stdout=subprocess.DEVNULL, check=False).returncode
    return 0


def run(options: dict[str, list[str]], words: list[str]) -> int:
    """`run --rm` here and now; `run --detach` by a process of its own, which prints the container's id."""
    tag, *command = words
    lines = Path(options["--env-file"][0]).read_text().splitlines() + options.get("--env", [])
    environ = {**OWN, **dict(line.split("=", 1) for line in lines)}
    if "--rm" in options:
        return subprocess.run(command, cwd=image_of(tag), env=environ, check=False).returncode
    environ["PORT"] = str(free_port())
    container = os.urandom(6).hex()
    shutil.copytree(image_of(tag), folder_of(container) / "app", symlinks=True)
    memory = int(options.get("--memory", ["0m"])[0].removesuffix("m")) * 2**20
    policy = options["--restart"][0]
    write(container, "spec", {"command": command, "environ": environ, "memory": memory, "policy": policy})
    write(container, "state", {"Running": True, "Status": "running", "ExitCode": 0, "pid": 0})
    nothing = subprocess.DEVNULL
    words = [sys.executable, __file__, str(HOST), "keep", container]
    subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    print(container)
    return 0


def keep(container: str) -> None:
    """Run the dyno, again and again as its restart policy says, until `kill` or `stop` leaves a note."""
    folder, spec = folder_of(container), read(container, "spec")
    note, restarts = folder / "stop", 0
    while True:
        with (folder / "log").open("ab") as log:
            dyno = Container.start(
                spec["command"],
                DOKKU,
                port=int(spec["environ"]["PORT"]),
                environ=spec["environ"],
                cwd=folder / "app",
                log=log,
                limits=Limits(memory=spec["memory"]),
            )
        write(container, "state", {"Running": True, "Status": "running", "ExitCode": 0, "pid": dyno.process.pid})
        while not dyno.wait(0.2):
            if note.exists() and (grace := note.read_text()):
                dyno.platform = replace(DOKKU, grace=float(grace))
                dyno.stop()
        dyno.close()
        code = dyno.process.returncode
        kind, _, most = spec["policy"].partition(":")
        again = kind == "unless-stopped" or (kind == "on-failure" and code and restarts < int(most))
        if note.exists() or not again:
            break
        restarts += 1
    write(container, "state", {"Running": False, "Status": "exited", "ExitCode": code % 256, "pid": 0})


def kill(options: dict[str, list[str]], words: list[str]) -> int:
    """A signal to the first process; what was told to end is not started again."""
    (folder_of(words[0]) / "stop").touch()
    with suppress(ProcessLookupError):
        os.kill(read(words[0], "state")["pid"] or 2**22, signal.Signals[options["--signal"][0]])
    return 0


def stop(options: dict[str, list[str]], words: list[str]) -> int:
    (folder_of(words[0]) / "stop").write_text(options["--time"][0])
    wait_for(lambda: not read(words[0], "state")["Running"], "the dyno has ended", 120)
    return 0


def rm(options: dict[str, list[str]], words: list[str]) -> int:
    if "--force" in options:
        stop({"--time": ["0.1"]}, words)
    shutil.rmtree(folder_of(words[0]))
    return 0


def execute(_: dict[str, list[str]], words: list[str]) -> int:
    container, *command = words
    environ = read(container, "spec")["environ"]
    return subprocess.run(command, cwd=folder_of(container) / "app", env=environ, check=False).returncode


def inspect(options: dict[str, list[str]], words: list[str]) -> int:
    shown = []
    for container in words:
        environ, state = read(container, "spec")["environ"], read(container, "state")
        shown.append({"Config": {"Env": [f"{name}={value}" for name, value in environ.items()]}, "State": state})
        if options.get("--format") == ["{{.State.Running}}"]:
            print(str(state["Running"]).lower())
        elif options.get("--format"):
            print(f"127.0.0.1:{environ['PORT']}" if state["Running"] else "")
    if "--format" not in options:
        print(json.dumps(shown))
    return 0


def logs(_: dict[str, list[str]], words: list[str]) -> int:
    print((folder_of(words[0]) / "log").read_text(errors="replace"), end="")
    return 0


COMMANDS = {"build": build, "run": run, "kill": kill, "stop": stop, "rm": rm, "exec": execute, "inspect": inspect}
COMMANDS |= {"logs": logs, "update": lambda *_: 0}

if __name__ == "__main__":
    if sys.argv[2] == "keep":
        keep(sys.argv[3])
    else:
        sys.exit(COMMANDS[sys.argv[2]](*parse(sys.argv[3:])))
