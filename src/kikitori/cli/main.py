"""The command `kikitori`: hands the rest of the line to one of the commands below."""

import atexit
import gc
import json
import multiprocessing
import os
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kikitori.config.overrides import LINE
from kikitori.config.secrets import secret_in
from kikitori.runs.resume import expand_resume
from kikitori.runtime import distributed, processes
from kikitori.runtime.errors import KikitoriError, Stopped

USAGE = """\
kikitori: fine-tune Whisper on speech, Japanese first.

  train       fine-tune a model, with scores before and after
              kikitori train model=whisper_small data.release=cv-corpus-27.0-2026-09-09-ja.tar.gz
              kikitori train resume=outputs/my-run
  evaluate    score a checkpoint or a stock model
              kikitori evaluate checkpoint=outputs/my-run data=demo
  prepare     decode a corpus once, and tell what would be left out
              kikitori prepare data=manifest data.manifest=recordings/metadata.csv
  transcribe  read audio files to text
              kikitori transcribe talk.mp3 --model outputs/my-run
  compare     rank runs and sweeps, with intervals; --report writes a page
              kikitori compare outputs/my-sweep --report report.html

train, evaluate and prepare are Hydra applications: --help lists what can be chosen, --cfg job prints the configuration,
-m sweeps over comma-separated values. Completion: eval "$(kikitori train -sc install=bash)" (or zsh, fish).
"""
HYDRA_COMMANDS = ("train", "evaluate", "prepare")
COMMANDS = (*HYDRA_COMMANDS, "transcribe", "compare")


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Weights that are no safetensors are refused, not sent through a converter on the Hub.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # OpenMP's threads spin while they wait for each other, which slows a CPU that others use too up to 50 times; this
    # short a spin costs a seventh on a quiet one. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # What is imported stays, some 400,000 objects: the collector's rounds while they come and its last ones at the end
    # took 1.5 of the 5.8 s of CPU time that a command took to import and end.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    processes.exit_with_launcher()
    arguments = sys.argv[1:]
    # argparse takes the beginning of an option for it.
    if any(len(a) > 2 and "--experimental-rerun".startswith(a.partition("=")[0]) for a in arguments):
        sys.exit("kikitori: --experimental-rerun would load a pickle, which can run anything; give the overrides again")
    if arguments[:1] == ["-sc"]:
        _complete()
    elif not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] not in COMMANDS:
        sys.exit(f"kikitori: {arguments[0]!r} is none of {', '.join(COMMANDS)}; see kikitori --help")
    else:
        if arguments[0] in HYDRA_COMMANDS:
            try:
                arguments = [arguments[0], *expand_resume(arguments[0], arguments[1:])]
            except KikitoriError as error:
                sys.exit(str(error))
        _refuse(arguments)
        os.environ[LINE] = json.dumps(arguments[1:])
        # Hydra and argparse read sys.argv from its second word on.
        sys.argv[1:] = arguments[1:]
        # A sweep that goes on does so in its folder.
        sys.argv += [f"hydra.sweep.dir={a.partition('=')[2]}" for a in arguments if a.startswith("resume_sweep=")]
        _run(arguments[0])


def _refuse(arguments: list[str]) -> None:
    """End before Hydra writes the line to files, where it holds a secret or cannot mean what it says."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if variable := secret_in(value):
            sys.exit(
                f"kikitori: {key} holds the value of {variable}, and a configuration is written to files; leave it out"
            )
    given = {key: value.strip("'\"") for key, _, value in (argument.partition("=") for argument in arguments)}
    # A kept axis brings the mode along.
    sweeps = "-m" in given or "--multirun" in given or given.get("hydra.mode") == "MULTIRUN" or "sweep" in given
    _refuse_folders(given, sweeps)
    for key in ("hydra/launcher", "hydra/sweeper"):
        if key in given and not sweeps:
            told = f"kikitori: {key}={given[key]} is for a sweep"
            sys.exit(f"{told}, and does nothing without -m; add it, for a single job, too")
    if given.get("hydra/launcher") == "slurm" and not find_spec("submitit"):
        sys.exit("kikitori: hydra/launcher=slurm needs a package more: pip install 'kikitori[slurm]'")
    if distributed.world_size() > 1 and "hydra.run.dir" not in given:
        sys.exit(
            f"kikitori: {distributed.world_size()} processes train this run, and each would make a folder of its own; "
            "name it: hydra.run.dir=..."
        )


def _refuse_folders(given: dict[str, str], sweeps: bool) -> None:
    """End where there is nothing in a folder to go on with, or something that would be written over."""
    folder, resume = given.get("hydra.run.dir"), given.get("resume") == "auto"
    if resume and folder is None and not sweeps:
        sys.exit("kikitori: resume=auto begins a run in a folder or goes on there; name it: hydra.run.dir=...")
    if folder and not resume and Path(folder, "results.json").exists() and distributed.rank() == 0:
        told = f"kikitori: hydra.run.dir={folder} already holds a run"
        sys.exit(f"{told}; choose another folder, or add resume=auto to go on")
    sweep = given.get("resume_sweep")
    if sweep is not None and not (sweeps and Path(sweep, "sweep.json").exists()):
        why = "holds no sweep.json; give the folder of a sweep" if sweeps else "goes on with a sweep; add -m"
        sys.exit(f"kikitori: resume_sweep={sweep} {why}")


def _run(command: str) -> None:
    """Run a command; an error that a user can mend is shown as its message, any other with its traceback.

    HYDRA_FULL_ERROR=1 makes Hydra hand its errors on instead of printing them; set by a user, it shows all tracebacks.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A run has its own way to stop; these hold before it begins, and when it has saved and ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        import_module(f"kikitori.cli.{command}").main()
    except Stopped as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except (KikitoriError, CompactHydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if full:
            raise
        causes = [error, error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [error]
        hint = "Keys depend on the choices made; --help after a choice, such as data=manifest, lists its own.\n"
        message = "\n".join(map(str, causes)) + "\n" + hint * ("Could not override" in str(error))
        sys.exit(message + "(HYDRA_FULL_ERROR=1 shows where)")
    finally:
        _end_workers()


def _end_workers() -> None:
    """End the loaders' workers that an error left: they ignore SIGTERM, and Python would wait for them for ever."""
    # Torch raises an error where a worker is killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def _stop(number: int, _: Any) -> None:
    raise Stopped(number)


def _complete() -> None:
    """Answer a shell that completes a line: the commands first, then Hydra's answer for the rest of the line."""
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.partition(" ")
    command, space, overrides = rest.partition(" ")
    if not space:
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
    elif command in HYDRA_COMMANDS:
        os.environ["COMP_LINE"] = f"{program} {overrides}"
        import_module(f"kikitori.cli.{command}").main()


if __name__ == "__main__":
    main()
