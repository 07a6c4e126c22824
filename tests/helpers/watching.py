"""What a block of code touches, and whether it ends."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

CALLS = ("open", "os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
CALLS += ("shutil.rmtree", "subprocess.Popen", "os.system", "os.exec", "socket.connect")
watched: list[tuple[str, str]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is None or event not in CALLS:
        return
    if event == "open" and not (
        isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        return
    watched.append((event, os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else str(arguments[0])))


sys.addaudithook(_audit)


@contextmanager
def only_in(folder: Path) -> Iterator[None]:
    """Raises AssertionError if the block writes, deletes, connects or starts anything outside of a folder."""
    global watched
    watched = []
    try:
        yield
    finally:
        found, watched = watched, None
    outside = [(event, path) for event, path in found if not os.path.realpath(path).startswith(f"{folder.resolve()}")]
    # Python's own compiled modules, and numbers of open files.
    assert not [call for call in outside if not call[1].endswith((".pyc", "/dev/null")) and not call[1].isdigit()]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in a block that hangs."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state(folder: Path) -> dict[str, tuple[int, float, str]]:
    """Everything in a folder: type and mode, time of change, and contents, to be compared later."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content = sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_mtime, content)
    return found
