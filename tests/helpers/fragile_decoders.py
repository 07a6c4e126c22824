"""Recordings that crash their decoder process: it is patched to execute what the first bytes of a recording stand for.

No file is known that crashes this version of libsndfile. kikitori's files are not changed: each Python that starts runs
the `sitecustomize` on its PYTHONPATH.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Opening a recording that begins with one of these keys executes its code. The time limit is 1 s instead of 60 s.
# The second value is the error that the decoder must report.
FAULTS = {
    b"SEGV": ("ctypes.string_at(0)", "the decoder was killed by SIGSEGV"),
    b"ABRT": ("os.abort()", "the decoder was killed by SIGABRT"),
    b"KILL": ("os.kill(os.getpid(), signal.SIGKILL)", "the decoder was killed by SIGKILL"),
    b"EXIT": ("os._exit(3)", "the decoder ended with 3"),
    b"SPIN": ("ctypes.CDLL(None).pause()", "took longer than 60 s to decode"),
    b"ODD!": ("[].pop()", "cannot be decoded: pop from empty list"),
    b"EAT!": ("bytearray(2**33)", "needs more than 4 GB to decode"),
}
FRAGILE = """\
import sys
if sys.argv[:1] == ["-m"]:  # true only while `python -m` starts
    import ctypes, os, signal
    from kikitori.audio import streams
    alarm, read = signal.alarm, streams.streams
    def patched_read(data):
        exec(FAULTS.get(data[:4], ""))
        return read(data)
    signal.alarm = lambda seconds: alarm(min(seconds, 1))
    streams.streams = patched_read
"""


@contextmanager
def fragile_decoders(folder: Path) -> Iterator[None]:
    """Patches the decoders that start during the block."""
    folder.mkdir(parents=True, exist_ok=True)
    faults = {start: code for start, (code, _) in FAULTS.items()}
    (folder / "sitecustomize.py").write_text(f"FAULTS = {faults!r}\n{FRAGILE}")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before
