"""Images: interpreters that have loaded the app once, and fork the inner processes that are Python programs.

A fork starts in a fraction of the time that loading takes, and shares the memory of what was loaded as long as
nobody writes to it. There are two of them, because gevent's patching must come before gunicorn's app is loaded and
must never reach Celery: `web` for gunicorn, `jobs` for all other Python programs. What they load is for
config/image.py to say. Nothing may be open or running in an image that two processes must not share: it refuses to
fork if the app started threads while it was loaded, and closes its database connections.

With SHARED_IMPORTS there is a third, `shared`, that has loaded these modules and nothing else, and that the two are
forked from: a library of 150 MB is in memory once. What they have taken of what gevent replaces is replaced in them
too; where that can't be done, they are refused.

The images themselves are forked from the supervisor: an interpreter of their own would take 50 ms and 13 MB more.

An image forks twice: the process in between ends at once, so that the new one becomes a child of the supervisor,
the subreaper above it, like any process that the supervisor starts itself. Where there is no image, or no more, the
supervisor does that.
"""

from __future__ import annotations

import _thread
import array
import atexit
import gc
import io
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from importlib import import_module
from os import fork  # gevent's would come with a hub, which must not be shared
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from .preflight import POOL_OPTION
from .processes import resident
from .settings import ROOT, get
from .titles import set_title

APP = Path(__file__).resolve().parents[1]
# Made before gevent's patching, they let one greenlet see what is another's, or hold up all.
BLOCKING = (_thread._local, socket.socket)
LOCK, RLOCK = type(threading.Lock()), type(threading.RLock())  # before gevent puts its own there
# In a script's first line; where the path is long or has spaces in it, pip writes a shell's line first.
INTERPRETER = re.compile(rb"""\A#!.*?(/[^"'\n]+)/python""", re.DOTALL)
LONGEST = 1 << 20  # bytes of a request: the command and the environment
ANSWER_WAIT = 5.0  # seconds that a fork may take; 2-10 ms is usual


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    GONE = "gone"


def name_for(argv: list[str], environ: Mapping[str, str]) -> str | None:
    """Which image a command is forked from: `web`, `jobs`, or None for what is no program of this Python's.

    Nor is a Celery worker with the pool gevent forked: its patching would come after all that it patches is in use.
    """
    pool = POOL_OPTION.search(shlex.join(argv))
    if pool and pool[1] == "gevent":
        return None
    program = shutil.which(argv[0], path=environ.get("PATH"))
    if sys.platform != "linux" or program is None:
        return None
    folder = Path(sys.executable).parent
    if Path(program).parent == folder and Path(program).name.startswith("python"):
        return "jobs" if len(argv) > 1 and not argv[1].startswith("-") else None
    with suppress(OSError), Path(program).open("rb") as file:
        interpreter = INTERPRETER.search(file.read(512))
        if interpreter and Path(os.fsdecode(interpreter[1])).resolve() == folder.resolve():
            return "web" if Path(program).name == "gunicorn" else "jobs"
    return None


class Image:
    """The supervisor's side of an image."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.LOADING
        self.pid = 0
        self.socket, self.other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(ANSWER_WAIT)

    def start(self, environ: Mapping[str, str], output: int) -> int:
        """The pid of the image's new process, forked from this one, its output going to a descriptor.

        Raises OSError if there can be no more processes.
        """
        # Until the new process is rid of the supervisor's handlers, which would write to the supervisor's pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

        def live() -> None:
            end = self.other_end.fileno()
            _forget_the_supervisor({output, end})
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _become([], environ, output)
            _load(self.name, end)()

        try:
            pid = fork()
            if not pid:
                _run_to_the_end(live)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def loaded(self) -> None:
        """Note that it is ready, or that it has ended, as its socket tells."""
        try:
            self.state = State.READY if self.socket.recv(16) else State.GONE
        except OSError:
            self.state = State.GONE

    def fork(self, argv: list[str], environ: Mapping[str, str], output: int, image: Image | None = None) -> int:
        """The pid of a new process that runs the command or becomes an image, its output going to a descriptor.

        Raises OSError if this image doesn't answer: it is killed, so that it does not do so late.
        """
        request = json.dumps({"argv": argv, "environ": dict(environ), "image": image.name if image else ""}).encode()
        try:
            socket.send_fds(self.socket, [request], [output, *([image.other_end.fileno()] if image else [])])
            if answer := self.socket.recv(64):
                return int(answer)
            raise ConnectionResetError(f"image {self.name} is gone")
        except OSError:
            self.state = State.GONE
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # not reaped yet, or the supervisor would know that it is gone
            raise


# --- in the image's process ---

shared = 0  # bytes that this process has of the image `shared`; 0 if there is none
shared_modules: set[str] = set()  # what was loaded there


def _forget_the_supervisor(descriptors: set[int]) -> None:
    """Put away what a new interpreter would not have: the supervisor's signal handlers, and all but these files.

    The supervisor's own objects stay as they are, and must: one that is freed would close a descriptor that
    belongs to somebody else by then. Nothing frees them, because nothing returns to where the fork was.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (a name for each, and one is that of the list itself)
        if int(name) > 2 and int(name) not in descriptors:
            with suppress(OSError):
                os.close(int(name))
    os.chdir(ROOT)
    sys.path[0] = str(APP)
    # A new interpreter would have PYTHONUNBUFFERED: what a program prints goes to the log at once, half lines too.
    unbuffered = io.FileIO(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(unbuffered, sys.stdout.encoding, sys.stdout.errors, write_through=True)


def _run_to_the_end(run: Callable[[], object]) -> NoReturn:
    """Run this and end the process, as its interpreter would after the last line of a program."""
    code = 1
    try:
        code = _exit_code(run)
        threading._shutdown()  # waits for threads; multiprocessing ends its forks in the same way
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
    finally:
        os._exit(code & 0xFF)  # whatever happens: what called this is the supervisor's code


def _exit_code(run: Callable[[], object]) -> int:
    """Run this; the exit code that its end means, after what an interpreter would print."""
    try:
        run()
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 (whatever a program raises)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _load(name: str, descriptor: int) -> Callable[[], object]:
    """Be the image of this name: load the app, then fork a process for each request.

    Returns in these, with what each is to run.
    """
    # The socket's C type: gevent's patching would make a socket of its own kind wait in a hub.
    supervisor = socket.SocketType(fileno=descriptor)
    os.environ.pop("BOILER_PROCESS")  # none of LocalProcfile's
    set_title(f"image ({name})")
    if name == "web" and get("WEB_WORKER_CLASS") == "gevent":
        _patch()
    gc.disable()  # all that is loaded stays
    renew = _load_shared() if name == "shared" else _load_app(name)
    if count := len(os.listdir("/proc/self/task")) - 1:  # noqa: PTH208
        what = "SHARED_IMPORTS" if name == "shared" else "the app"
        sys.exit(f"{what} has started {count} threads while it was loaded, so it can't be forked")
    gc.enable()
    gc.freeze()  # a collection would write to all that is shared
    supervisor.send(b"ready")
    return _serve(supervisor, renew)


def _load_app(name: str) -> Callable[[], None]:
    app = import_module("config.image")
    app.load(name)
    return app.renew


def _load_shared() -> Callable[[], None]:
    global shared  # noqa: PLW0603 (of this process and all that are forked from it)
    before = set(sys.modules)
    for module in get("SHARED_IMPORTS"):
        try:
            import_module(module)
        except ImportError as error:
            sys.exit(f"SHARED_IMPORTS: {error}: correct it or take {module} off the list")
    loaded = sys.modules.keys() - before
    # Those of the standard library are gevent's to see to.
    shared_modules.update(name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names)
    shared = resident(os.getpid())
    return lambda: None


def _patch() -> None:
    """Let gevent replace what blocks, in the shared modules too. Exits where one of them can't be mended."""
    from gevent import monkey  # noqa: PLC0415 (never in the image `jobs`)

    monkey.patch_all()
    replaced = {
        id(original): getattr(sys.modules[module], name)
        for module, originals in monkey.saved.items()
        for name, original in originals.items()
        if callable(original) and hasattr(sys.modules[module], name)
    }
    for name in sorted(shared_modules):
        for attribute, value in list(vars(sys.modules[name]).items()):
            if id(value) in replaced:  # as after `from time import sleep`
                setattr(sys.modules[name], attribute, replaced[id(value)])
            elif isinstance(value, LOCK):
                setattr(sys.modules[name], attribute, threading.Lock())
            elif isinstance(value, RLOCK):
                setattr(sys.modules[name], attribute, threading.RLock())
            elif isinstance(value, BLOCKING) or (isinstance(value, type) and issubclass(value, BLOCKING)):
                module = name.partition(".")[0]
                sys.exit(f"SHARED_IMPORTS: {name}.{attribute} would block gevent: take {module} off the list")


def _serve(supervisor: socket.socket, renew: Callable[[], None]) -> Callable[[], object]:
    """Answer requests until the supervisor is gone. Returns in the forked processes: with what each is to run."""
    while True:
        data, ancillary, _, _ = supervisor.recvmsg(LONGEST, socket.CMSG_SPACE(2 * array.array("i").itemsize))
        if not data:
            os._exit(0)
        output, *ends = descriptors = array.array("i", ancillary[0][2])
        request = json.loads(data)
        reader, writer = os.pipe()
        between = fork()
        if not between:
            if pid := fork():
                os.write(writer, b"%d" % pid)
                os._exit(0)
            for descriptor in (reader, writer):
                os.close(descriptor)
            supervisor.close()
            _become(request["argv"], request["environ"], output)
            if request["image"]:
                return _load(request["image"], *ends)
            renew()
            return _program(request["argv"])
        os.waitpid(between, 0)
        for descriptor in (writer, *descriptors):
            os.close(descriptor)
        supervisor.send(os.read(reader, 64))
        os.close(reader)


def _become(argv: list[str], environ: dict[str, str], output: int) -> None:
    """Make this process what subprocess.Popen would have made."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for descriptor in (nothing, output):
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    setproctitle(" ".join(argv))  # the image's own would stay with programs that set none
    random.seed()


def _program(argv: list[str]) -> Callable[[], object]:
    """What runs a Python program as its interpreter would."""
    if Path(argv[0]).name.startswith("python"):
        argv = argv[1:]
        sys.path[0] = str(Path(argv[0]).parent)
        program = argv[0]
    else:
        program = shutil.which(argv[0]) or argv[0]
    sys.argv = [program, *argv[1:]]
    return lambda: runpy.run_path(program, run_name="__main__")
