"""Runs the real command in a process that was forked with everything imported.

The parent is multiprocessing's fork server, which has loaded torch, Lightning and transformers and never computed
anything, so a run starts at once. From there on it is the command: its arguments, environment, folder, output and exit
code. Faults are installed between the fork and the command; the package contains no code for tests.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

# Modules that a run imports at some point.
PRELOADED = [
    *("kikitori.cli.main", "kikitori.cli.train", "kikitori.pipelines.train", "kikitori.data.datamodule"),
    "kikitori.sweeps.optuna_sweeper",
    *("torch._dynamo", "torch.distributed", "torch.nn.parallel", "pytorch_lightning.loggers.csv_logs"),
    *("transformers.models.whisper.modeling_whisper", "transformers.models.whisper.tokenization_whisper"),
    *("transformers.generation", "safetensors.torch", "rich.table", "jiwer", "sudachipy"),
]


def command(
    arguments: Sequence[str], folder: str, environment: Mapping[str, str], output: str, faults: Mapping[str, Any]
) -> None:
    """Run `kikitori <arguments>` in `folder` and exit; never returns."""
    threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
    assert threads == 1, f"the fork server has {threads} threads, so its children differ from fresh processes"
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    # A process started in a shell has the kernel's defaults; the fork server ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    sys.argv = ["kikitori", *arguments]
    from kikitori.cli.main import main

    inject(faults)
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    # As the interpreter does at exit.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def inject(faults: Mapping[str, Any]) -> None:
    """Install faults: names of functions of `faults.py`, with their arguments."""
    for name, arguments in faults.items():
        getattr(importlib.import_module("faults"), name)(**arguments)


if __name__ == "__main__":
    # A plain process with faults: python child.py '{"faults": ...}' train ...
    import json

    given = json.loads(sys.argv.pop(1))
    inject(given)
    from kikitori.cli.main import main

    main()
