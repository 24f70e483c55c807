"""Stand-ins for the clients of platforms, in a folder for PATH: each really runs the command, in a dyno's checkout.

They behave as the real ones were seen or read to: what they print around the output, what they do to quotes and
exit codes. `Clients` says where the dyno is.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

APP = "kitchen"

# ps:exec: banners to stderr, a terminal (errors in the output, CR LF), no config vars, always exit code 0.
HEROKU = """\
import os, pty, sys
words = sys.argv[1:]
app = words[words.index("--app") + 1] if "--app" in words else ""
if words[:1] != ["ps:exec"] or app != {app!r}:
    sys.exit(" \\u25b8    Couldn't find that app.")
print("Establishing credentials... done", file=sys.stderr)
print("Connecting to web.1 on \\u2b22 " + app + "... up", file=sys.stderr)
command = words[words.index("--") + 1:]
line = command[0] if len(command) == 1 else " ".join('"' + word + '"' if " " in word else word for word in command)
os.environ.clear()
os.environ.update(PATH={path!r}, HOME={root!r}, TERM="xterm", DYNO="web.1")
sys.stdout.flush()
print("Warning: a profile script says something.")
sys.stdout.flush()
pty.spawn(["/bin/sh", "-c", line])
sys.exit(0)
"""

# ssh to a server whose account has a forced command, for the two that have one.
SSH = """\
import os, subprocess, sys
words = sys.argv[1:]
while words and words[0].startswith("-"):
    del words[: 2 if words[0] in ("-o", "-p") else 1]
host, command = words[0], " ".join(words[1:])
user, _, server = host.partition("@")
if server != "server.example":
    print("ssh: Could not resolve hostname " + server + ": Name or service not known", file=sys.stderr)
    sys.exit(255)
config = {environ!r}

def dokku():
    # The words as xargs splits them (facts of the real one); then no shell, but herokuish's `eval`.
    words = subprocess.run(["xargs", "-n", "1"], input=command, capture_output=True, text=True).stdout.splitlines()
    if words[:1] != ["enter"] or words[1] != {app!r}:
        print(" !     App " + words[1] + " does not exist", file=sys.stderr)
        return 20
    line = 'cd {root!s} && exec $(eval echo "$@")'
    return subprocess.run(["bash", "-c", line, "exec", *words[3:]], env=config).returncode

def piku():
    # authorized_keys: command="piku.py $SSH_ORIGINAL_COMMAND", so that quotes stay where they are.
    words = command.split()
    if words[:1] != ["run"] or words[1] != {app!r} or words[2] != "--":
        print("Error: app '" + words[1] + "' not found.")
        return 1
    subprocess.run(" ".join(words[3:]), shell=True, cwd={root!r}, env=config)
    return 0

sys.exit({{"dokku": dokku, "piku": piku}}[user]())
"""


@dataclass(frozen=True)
class Clients:
    """Writes the clients. `root` is the dyno's checkout, `environ` what the platform gives its processes."""

    folder: Path
    root: Path
    environ: dict[str, str]

    def write(self) -> str:
        """Write them; returns the PATH that finds them first."""
        self.folder.mkdir(parents=True)
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        values = {"app": APP, "root": str(self.root), "path": path, "environ": {**self.environ, "PATH": path}}
        for name, code in {"heroku": HEROKU, "ssh": SSH}.items():
            program = self.folder / name
            program.write_text(f"#!{sys.executable}\n{code.format(**values)}")
            program.chmod(0o755)
        return f"{self.folder}:{os.environ['PATH']}"
