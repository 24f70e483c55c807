"""`make admin`: an account for Django's admin, made where the app runs. The way there is that of `make verify`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from tests.verify.backends import UnreachableError
from tests.verify.target import chosen, reach


def make_account(environ: Mapping[str, str]) -> str:
    """What `manage.py admin` says on the target: the name, and the password once. Raises UnreachableError."""
    target = chosen(environ)
    name = environ.get("NAME") or "admin"
    if target == "url":
        raise UnreachableError("TARGET=url leads only to the page: take the target that leads into the dyno")
    if not re.fullmatch(r"[\w.@+-]+", name, re.ASCII):
        raise UnreachableError(f"NAME={name}: must be of letters, digits, and _ . @ + -")
    host, command = reach(target, environ, f"app/boil run python app/manage.py admin {name}")
    try:
        done = host.run(command)
    except RuntimeError as error:  # testinfra's ssh raises its result
        raise UnreachableError(f"{host.backend.get_pytest_id()} can't be reached: {error}") from None
    if done.rc:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UnreachableError(f"{host.backend.get_pytest_id()}: no account made (exit code {done.rc}): {said}")
    return done.stdout.strip()


def main() -> int:
    """Make the account and print it."""
    try:
        print(make_account(os.environ))
    except UnreachableError as error:
        print(f"admin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
