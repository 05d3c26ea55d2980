"""
What a child runs before its program: put off root, tie its life to ours, exec.

A file to run, not to import: `python -I -S leash.py PARENT SIGNAL UID GID PROGRAM ARGUMENT…`. A `preexec_fn` would do
the same, but may deadlock in a parent with threads. The kernel sends SIGNAL when the thread that started us dies
(Linux only, and forgotten by a change of user: hence the order below), so that even `kill -9` of a stack ends it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program named on the command line."""
    parent, death_signal, uid, gid = (int(word) for word in sys.argv[1:5])
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc:
        libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew whom to tell
        sys.exit("its parent is gone")
    try:
        os.execvp(sys.argv[5], sys.argv[5:])  # noqa: S606  # replacing ourselves is the purpose
    except OSError as error:
        sys.exit(f"{sys.argv[5]}: {error.strerror}")


if __name__ == "__main__":
    main()
