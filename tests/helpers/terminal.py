"""A pseudo-terminal of a given width, for what a program prints to a person."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

from rich.cells import cell_len


def run_in_terminal(arguments: Sequence[str], columns: int = 80) -> list[str]:
    """The lines that `python ARGUMENTS` prints in a terminal of that many columns, without escape sequences.

    A bar that is drawn again counts as another line.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment["TERM"] = "xterm"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    process = subprocess.Popen([sys.executable, *arguments], env=environment, **streams)
    os.close(follower)
    output = b""
    while chunk := _read(leader):
        output += chunk
    os.close(leader)
    assert process.wait() == 0, output.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).replace("\r\n", "\n").replace("\r", "\n").splitlines()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""


def widest(lines: Sequence[str]) -> int:
    """Columns that the longest line takes; Japanese characters take two."""
    return max(map(cell_len, lines))
