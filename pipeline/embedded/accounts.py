"""
As whom Postgres runs: it refuses root, so root lends it another account of the machine.

Nothing is created and no permission is widened: no user added, no home directory opened. The data directory belongs
to that account and is entered before root is put off (`postgres.py`); programs it cannot reach are copied to a place
where it can.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

PREFERRED = ("nobody", "daemon", "postgres")


@dataclass(frozen=True)
class Account:
    """A user of the machine that is not root."""

    uid: int
    gid: int


def account_for(data: Path) -> Account | None:
    """
    Choose the account for a server on *data*: None (ourselves) unless we are root.

    Raises:
        ConfigError: We are root and the machine has no other user.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (facts := data.stat()).st_uid != 0:
        return Account(facts.st_uid, facts.st_gid)
    users = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    for name in (*PREFERRED, *users):
        if user := users.get(name):  # initdb insists on an account that has a name
            return Account(user.pw_uid, user.pw_gid)
    raise ConfigError("Postgres does not run as root, and this machine has no other user: add one (useradd postgres).")


def can_run(account: Account | None, *command: str) -> bool:
    """Try whether *account* reaches and may run a program."""
    if account is None:
        return True
    try:
        done = subprocess.run(
            command, user=account.uid, group=account.gid, extra_groups=[], capture_output=True, check=False, cwd="/"
        )
    except PermissionError:
        return False
    return done.returncode == 0


def copy_for_all(source: Path, target: Path, *, only: tuple[str, ...]) -> None:
    """Copy the parts *only* of a tree to where every account may read and run them."""
    for part in only:
        for path in sorted(source.glob(part)):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, copy)
            else:
                shutil.copy2(path, copy)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
