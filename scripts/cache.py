"""What the set-up scripts share: the cache folder, pinned wheels, layouts that appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# Temporary folders that a killed run left behind are removed once this old.
STALE_SECONDS = 24 * 3600


class SetupError(Exception):
    """Something that the user has to know or mend."""


def say(message):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)


def run_script(main):
    """Runs `main`, turning errors into one line and a status."""
    try:
        main()
    except SetupError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def cache_folder():
    """Where downloads are laid out: $TEMPONAS_CACHE, or ~/.cache/temponas."""
    named = os.environ.get("TEMPONAS_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "temponas"


@contextlib.contextmanager
def locked(cache, name):
    """Keeps two runs from laying out the same thing at once."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def appearing(folder):
    """Yields (work, layout), two empty folders; `layout` is renamed to `folder` when the block ends well."""
    prefix = f".{folder.name}."
    for leftover in folder.parent.glob(prefix + "*"):
        if leftover.is_dir() and time.time() - leftover.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        work, layout = Path(temporary) / "work", Path(temporary) / "layout"
        work.mkdir()
        layout.mkdir()
        yield work, layout
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(layout, folder)


def download_wheels(requirements, platforms, into):
    """Fetches wheels pinned by digest (lines of a requirements file) with pip, and returns their paths.

    `platforms` are wheel tags. One wheel is pinned for all: the programs and libraries inside are
    the same for every Python version, so the tags of the running Python are not asked for.
    """
    listing = into / "requirements.txt"
    listing.write_text(requirements)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(into), "-r", str(listing)]
    command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none"]
    for name in platforms:
        command += ["--platform", name]
    # pip unpacks into the temporary folder, and /tmp is often too small for half a gigabyte.
    environment = dict(os.environ, TMPDIR=str(into))
    if subprocess.run(command, env=environment, stdout=sys.stderr).returncode != 0:
        raise SetupError("pip could not download the packages (see above)")
    return sorted(into.glob("*.whl"))


def extract(wheels, into, place):
    """Unpacks the members to which `place(name)` gives a relative path; returns the names taken."""
    taken = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                to = None if member.is_dir() else place(member.filename)
                if to is None:
                    continue
                target = into / to
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if member.external_attr >> 16 & 0o111:
                    target.chmod(0o755)
                taken.add(member.filename)
    return taken


def link_for_cargo(name, folder):
    """.cargo/config.toml points into this link, so that a plain `cargo build` or `cargo test` finds the library."""
    link = Path(__file__).resolve().parent.parent / ".cargo" / name
    target = folder.resolve()
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    fresh = link.with_name(f".{name}.{os.getpid()}")
    fresh.symlink_to(target)
    os.replace(fresh, link)
