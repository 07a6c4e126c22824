"""A further process of a run on several devices: `python -m kikitori.cli.worker COMMAND FOLDER`.

`runtime.distributed` starts it and sends the configuration through standard input.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from kikitori.runtime.errors import Stopped
from kikitori.runtime.processes import exit_with_launcher
from kikitori.runtime.text import make_output_safe


def main() -> None:
    """Runs the command with the configuration that comes through standard input."""
    exit_with_launcher()
    make_output_safe()
    config = json.load(sys.stdin)
    try:
        command = sys.argv[1]
        pipeline = import_module(f"kikitori.pipelines.{command}")
        getattr(pipeline, command)(config, Path(sys.argv[2]))
    except Stopped as error:
        sys.exit(error.code)
    # Without the interpreter's own shutdown: it is sometimes aborted by a library's thread, and the run, which is
    # complete, would be reported as failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
