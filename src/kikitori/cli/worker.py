"""One further process of a run on several devices: `python -m kikitori.rank COMMAND FOLDER`, started by `ranks`."""

import json
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from kikitori.runtime.errors import Stopped
from kikitori.runtime.processes import exit_with_launcher


def main() -> None:
    """Run the command with the configuration that comes through standard input."""
    exit_with_launcher()
    cfg = OmegaConf.create(json.load(sys.stdin))
    from kikitori.pipelines import train

    try:
        getattr(train, sys.argv[1])(cfg, Path(sys.argv[2]))
    except Stopped as error:
        sys.exit(error.code)
    # All is done; an interpreter that takes its time to end is now and then aborted by a thread of a library, which
    # would be told as the failure of a run that went well.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
