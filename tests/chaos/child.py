"""A run of the real command in a process that was forked with everything imported.

The parent is multiprocessing's fork server, which has loaded torch, Lightning and transformers and never computed
anything. So a run starts in no time; from there on it is the command: its arguments, environment, folder, output and
exit code. What breaks it is put in place between the fork and the command; the package itself knows of no tests.
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

# What a run imports sooner or later.
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
    """Be `kikitori <arguments>`, started in `folder`; never returns."""
    threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
    assert threads == 1, f"the fork server has {threads} threads, so that its children are not like fresh processes"
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    # A process of the command line has the kernel's defaults; the fork server ignores SIGINT.
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
    # As the interpreter ends.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def inject(faults: Mapping[str, Any]) -> None:
    """Put faults in place: by the name of a function of `faults.py`, with its arguments."""
    for name, arguments in faults.items():
        getattr(importlib.import_module("faults"), name)(**arguments)


if __name__ == "__main__":
    # A plain process with faults: python child.py '{"faults": ...}' train ...
    import json

    given = json.loads(sys.argv.pop(1))
    inject(given)
    from kikitori.cli.main import main

    main()
