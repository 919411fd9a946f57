"""What the scripts share that run a command with servers of its own: nothing of them is left when the command ends."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cache import SetupError

PR_SET_PDEATHSIG = 1
# A Unix socket's path holds at most 107 bytes, so a long TMPDIR cannot be used.
LONGEST_TEMPORARY_FOLDER = 50
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def temporary_folder(prefix):
    """A folder that is gone after the block, also when the script is interrupted or ended.

    What runs of the same prefix left that were killed outright is removed first. Signals are ignored while
    the caller's `finally` blocks run, once a first one came.
    """
    parent = tempfile.gettempdir()
    parent = parent if len(parent) <= LONGEST_TEMPORARY_FOLDER else "/tmp"
    remove_leftovers(parent, prefix)
    for number in SIGNALS:
        signal.signal(number, end_in_order)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        ignore_signals()
        shutil.rmtree(folder, ignore_errors=True)


def end_in_order(number, frame):
    """Ends the script through its `finally` blocks, which a second signal does not cut short."""
    ignore_signals()
    sys.exit(128 + number)


def ignore_signals():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def remove_leftovers(parent, prefix):
    """Folders whose lock nobody holds any more."""
    for folder in Path(parent).glob(prefix + "*"):
        try:
            with open(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def start_server(command, folder, death_signal, user=None):
    """Starts a server in `folder`, which also holds its `log`; it does not outlive this process.

    It has a session of its own, so that Ctrl-C reaches the command and leaves it its server. `user` is an
    entry of the password database to run as.
    """
    with open(folder / "log", "w") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            preexec_fn=prepared(user, death_signal),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def prepared(user, death_signal):
    """For a child before it executes: another user, and a signal when this process is gone."""
    library = ctypes.CDLL(None)

    def prepare():
        if user is not None:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        # After the change of user, which would clear it.
        if sys.platform == "linux":
            library.prctl(PR_SET_PDEATHSIG, death_signal)

    return prepare


def stop_server(server, number, seconds):
    """Ends a server with signal `number`, or outright when it takes longer than `seconds`."""
    if server.poll() is None:
        server.send_signal(number)
        try:
            server.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def run_command(command, **variables):
    """Runs the command with `variables` added to its environment, and returns its status."""
    try:
        child = subprocess.Popen(command, env=dict(os.environ, **variables))
    except OSError as error:
        raise SetupError(f"cannot run {command[0]}: {error.strerror}") from error
    # Ctrl-C reaches the child by itself, from the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    status = child.wait()
    return status if status >= 0 else 128 - status
