"""Recordings that take their decoder down, whatever libsndfile is mended of: the decoder's Python reads them as orders.

No such file is known of this libsndfile, so the process is given a library that has the faults. Nothing of kikitori's
is changed: a `sitecustomize` on PYTHONPATH is run by each Python that starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Opening a recording that begins with one of these does it. The limit of time is a second instead of a minute.
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
if sys.argv[:1] == ["-m"]:  # so it is while `python -m` starts
    import ctypes, os, signal, soundfile
    alarm, init = signal.alarm, soundfile.SoundFile.__init__
    def opened(self, file, *more, **named):
        fault = FAULTS.get(file.getvalue()[:4]) if hasattr(file, "getvalue") else None
        if fault:
            exec(fault)
        init(self, file, *more, **named)
    signal.alarm = lambda seconds: alarm(min(seconds, 1))
    soundfile.SoundFile.__init__ = opened
"""


@contextmanager
def fragile_decoders(folder: Path) -> Iterator[None]:
    """Let decoders that start in this block have the faults."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = {start: order for start, (order, _) in FAULTS.items()}
    (folder / "sitecustomize.py").write_text(f"FAULTS = {orders!r}\n{FRAGILE}")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before
