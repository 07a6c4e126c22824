#!/usr/bin/env python3
"""Python executable for the other processes of a multi-device run: installs faults, then runs the given module."""

import json
import os
import runpy
import sys

if __name__ == "__main__":
    import child

    child.inject(json.loads(os.environ.pop("KIKITORI_CHAOS_RANKS", "{}")))
    assert sys.argv[1] == "-m"
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
