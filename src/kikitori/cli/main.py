"""The command `kikitori`: picks the sub-command, checks its arguments, and shows errors without a traceback."""

import argparse
import atexit
import gc
import json
import os
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kikitori import __version__
from kikitori.config.names import did_you_mean, outdated
from kikitori.config.overrides import (
    LINE,
    LISTS,
    absolute_paths,
    config_folders,
    key_of,
    override,
    quote_value,
    split_words,
    value_of,
)
from kikitori.config.suggestions import explain, unknown_option, wrong_words
from kikitori.config.targets import FOLDER
from kikitori.runs.results import RESULTS, ended_before_scoring
from kikitori.runs.resume import expand_resume, expand_resume_sweep, start_folder_of
from kikitori.runtime import distributed, processes
from kikitori.runtime.errors import Failed, KikitoriError, Stopped, describe_error
from kikitori.runtime.text import make_output_safe, mask, safe, secret_fault

USAGE = """\
kikitori: fine-tune Whisper on speech, Japanese first.

train       fine-tune a model, with scores before and after
    kikitori train data.release=cv-corpus-27.0-2026-09-09-ja.tar.gz
    kikitori train resume=outputs/my-run
evaluate    score a checkpoint or a stock model
    kikitori evaluate checkpoint=outputs/my-run data=demo
prepare     decode a corpus and list the clips that would be rejected
    kikitori prepare data=manifest data.manifest=recordings/metadata.csv
transcribe  transcribe audio files
    kikitori transcribe talk.mp3 --model outputs/my-run
guard       compare a tuned model with its base on what the corpus does not show
    kikitori guard outputs/my-run
average     average tuned models, and mix them with their base
    kikitori average outputs/my-sweep/0-seed-0 outputs/my-sweep/1-seed-1
export      write a model for other engines, and read it back with each of them
    kikitori export outputs/my-run --to ctranslate2,ggml
demo        a page to try a model next to its base, by microphone or file
    kikitori demo outputs/my-run
compare     rank runs and sweeps, with intervals; --report writes a page
    kikitori compare outputs/my-sweep --report report.html
push        upload a model with its card to the Hugging Face Hub
    kikitori push outputs/my-run my-name/whisper-ja --dry-run

kikitori COMMAND --help lists the options of a command. For train, evaluate,
prepare, guard, average and export these are choices and keys of the
configuration: model=whisper_base optim.lr=3e-5. -m sweeps over comma-separated
values, --cfg job prints the composed configuration. kikitori --version prints
the version.
Completion: eval "$(kikitori train -sc install=bash)" (or zsh, fish)."""
HYDRA_COMMANDS = ("train", "evaluate", "prepare", "guard", "average", "export")
# The key of the models that a command takes as plain words.
MODELS = {"guard": "checkpoint", "average": "runs", "export": "checkpoint"}
# The options of these commands, each with an example; they set the keys of their names.
BASE = {"against": "openai/whisper-small"}
FORMATS = {"to": "ctranslate2,ggml", "quantize": "float16,int8", "check": "50"}
OPTIONS = {"guard": BASE, "average": BASE, "export": FORMATS}
# Options of Hydra with which a command prints something and does not run.
PRINTS_ONLY = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
COMMANDS = (*HYDRA_COMMANDS, "transcribe", "demo", "compare", "push")


def main() -> None:
    """Entry point of the console script."""
    make_output_safe()
    try:
        _main()
    except SystemExit as error:
        # Whatever a message names, a word of a run's record or a file, reaches the terminal as text.
        sys.exit(safe(error.code) if isinstance(error.code, str) else error.code)


def _main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Weights that are not safetensors are refused, not sent through a converter on the Hub.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # Nor does a Slurm job, whose command is submitit's, import modules from the folder in which it starts.
    os.environ["PYTHONSAFEPATH"] = "1"
    # The 400,000 imported objects live until the end. Garbage collection while they were created, and once more at
    # exit, took 1.5 of the 5.8 s of CPU time in which a command started and ended.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    processes.exit_with_launcher()
    # A run that is resumed goes back to the folder where it was started, in which no class of the user's is searched.
    os.environ.setdefault(FOLDER, os.getcwd())
    arguments = sys.argv[1:]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if arguments[:1] == ["-sc"]:
        _complete()
    elif "--version" in arguments:
        print(f"kikitori {__version__}")
    elif not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] not in COMMANDS:
        suggestion = did_you_mean(arguments[0], COMMANDS)
        sys.exit(f"kikitori: {arguments[0]!r} is not one of {', '.join(COMMANDS)}{suggestion}")
    else:
        _run(arguments[0], _prepare_line(arguments[0], arguments[1:]))


def _accept_hydras_help() -> None:
    """Lets Hydra 1.3 add an option whose help text is no string, which argparse refuses from Python 3.14 on."""
    if check := getattr(argparse.ArgumentParser, "_check_help", None):
        lenient = lambda self, action: check(self, action) if isinstance(action.help, str) else None  # noqa: E731
        argparse.ArgumentParser._check_help = lenient  # type: ignore[attr-defined]


_accept_hydras_help()


def _prepare_line(command: str, words: list[str]) -> list[str]:
    """The words after the command, checked, with `resume=FOLDER` and `resume_sweep=FOLDER` expanded."""
    # First, since every other message may print a word. Words of a record are checked with the configuration.
    for word in words:
        if fault := secret_fault(word):
            sys.exit(f"kikitori: {mask(word).partition('=')[0]} {fault}")
    if command in MODELS:
        words = _models(command, words)
    if command in HYDRA_COMMANDS:
        words = [word if word.startswith("-") else quote_value(word) for word in words]
        _refuse_names(command, words)
        try:
            if start := start_folder_of(words):
                words = absolute_paths(words)
                os.chdir(start)
            words = expand_resume_sweep(command, expand_resume(command, words))
        except (KikitoriError, OSError) as error:
            sys.exit(describe_error(error) if isinstance(error, KikitoriError) else str(error))
    _refuse([command, *words])
    os.environ[LINE] = json.dumps(words)
    # A resumed sweep runs in its own folder.
    sweeps = [word for word in words if key_of(word) == "resume_sweep" and value_of(word)]
    words = [*words, *(override("hydra.sweep.dir", value_of(word)) for word in sweeps)]
    # argparse takes no override after an option that follows one.
    options, overrides = split_words(words)
    return [*overrides, *options] if command in HYDRA_COMMANDS else words


def _models(command: str, words: list[str]) -> list[str]:
    """The words of `guard MODEL --against BASE` and the like as overrides; `average` takes several models."""
    key, found, others, rest = MODELS[command], [], [], iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option.startswith("--") and (name := option[2:]) in OPTIONS[command]:
            if not (value := value if equals else next(rest, "")):
                sys.exit(f"kikitori: {option}: needs a value, such as {option} {OPTIONS[command][name]}")
            found.append(_option(name, value))
        else:
            others.append(word)
    options, plain = split_words(others)
    models = [word for word in plain if "=" not in word and not word.startswith(("+", "~"))]
    found += [*options, *(word for word in plain if word not in models)]
    if key == "runs" and models:
        return [f"{key}=[{','.join(override('', model)[1:] for model in models)}]", *found]
    if len(models) > 1:
        _refuse_options(options)  # the second one may be the value of an option that does not exist
    if len(models) > 1 and command == "guard":
        sys.exit(f"kikitori: {models[1]}: one model is compared, {models[0]}; its base is --against {models[1]}")
    if len(models) > 1:
        meant = "" if Path(models[1]).exists() else f"; formats are --to {models[1]}"
        sys.exit(f"kikitori: {models[1]}: one model is exported at a time, {models[0]}{meant}")
    return [*(override(key, model) for model in models), *found]


def _option(name: str, value: str) -> str:
    """An option's value as an override: a list with commas, or a text that may be a path."""
    if name in LISTS:
        return f"{name}=[{value}]"
    return override(name, value) if name in BASE else f"{name}={value}"


def _refuse_names(command: str, words: list[str]) -> None:
    """Exits if an override has a name or form that cannot be used, or an option does not exist."""
    old = outdated(split_words(words)[1], config_folders(words))
    if found := [*old, *wrong_words(command, words)]:
        sys.exit(f"kikitori: {'; '.join(found)}")
    _refuse_options(words)


def _refuse_options(words: list[str]) -> None:
    """Exits if an option does not exist."""
    options = [name for action in get_args_parser()._actions for name in action.option_strings]
    if unknown := unknown_option(words, options):
        sys.exit(f"kikitori: {unknown}")


def _refuse(arguments: list[str]) -> None:
    """Exits before Hydra writes anything if a command line, with all that it stands for, cannot be run."""
    # argparse accepts abbreviated options.
    if any(len(a) > 2 and "--experimental-rerun".startswith(a.partition("=")[0]) for a in arguments):
        sys.exit("kikitori: --experimental-rerun would load a pickle, which can run any code; pass the overrides again")
    given = {key_of(word): value_of(word) for word in arguments}
    # A choice of `sweep` sets the mode.
    sweeps = "-m" in given or "--multirun" in given or given.get("hydra.mode") == "MULTIRUN" or "sweep" in given
    _refuse_folders(given, sweeps)
    for key in ("hydra/launcher", "hydra/sweeper"):
        if key in given and not sweeps:
            sys.exit(f"kikitori: {key}={given[key]} applies to sweeps and does nothing without -m; add -m")
    if given.get("hydra/launcher") == "slurm" and not find_spec("submitit"):
        sys.exit("kikitori: hydra/launcher=slurm needs another package: pip install 'kikitori[slurm]'")
    if distributed.world_size() > 1 and "hydra.run.dir" not in given:
        sys.exit(
            f"kikitori: {distributed.world_size()} processes train this run, and each would make a folder of its own; "
            "name it: hydra.run.dir=..."
        )


def _refuse_folders(given: dict[str, str | None], sweeps: bool) -> None:
    """Exits if a folder to resume in is not named, or if a run in it would be overwritten."""
    folder, resume = given.get("hydra.run.dir"), given.get("resume") == "auto"
    if resume and folder is None and not sweeps:
        sys.exit("kikitori: resume=auto resumes or starts the run in a folder; name it: hydra.run.dir=...")
    if folder and Path(folder).is_file():
        sys.exit(f"kikitori: hydra.run.dir={folder} is a file; give a folder")
    holds_run = folder and Path(folder, RESULTS).exists() and not ended_before_scoring(Path(folder))
    if holds_run and not resume and distributed.rank() == 0:
        message = f"kikitori: hydra.run.dir={folder} already holds a run"
        sys.exit(f"{message}; choose another folder, or add resume=auto to resume it")
    sweep = given.get("resume_sweep")
    if sweep and not sweeps:
        sys.exit(f"kikitori: resume_sweep={sweep} resumes a sweep; add -m")


def _run(command: str, words: list[str]) -> None:
    """Runs a command. An error that users can fix is shown as its message, any other with its traceback.

    HYDRA_FULL_ERROR=1 makes Hydra raise its errors instead of printing them; if the user has set it, all tracebacks are
    shown.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra and argparse read the words from here.
    sys.argv[1:] = words
    # For the time before a run handles signals by itself, and after it has saved.
    stop = processes.StopOnce()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.handle)
    try:
        _call(command)
    except Stopped as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except BrokenPipeError as error:
        if command in HYDRA_COMMANDS and not PRINTS_ONLY & set(words):
            sys.exit(str(error))  # a run that failed
        # The reader of the output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KikitoriError, CompactHydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if full:
            raise
        if isinstance(error, KikitoriError):
            sys.exit(describe_error(error))
        message = explain(error, command, words)
        if message == str(error):
            cause = f"{error.__cause__}\n" if isinstance(error.__cause__, OmegaConfBaseException) else ""
            message = f"{message}\n{cause}(HYDRA_FULL_ERROR=1 shows where)"
        sys.exit(message)
    finally:
        processes.kill_workers()


def _call(command: str) -> None:
    """Calls a command's own entry point. Raises the error of its pipeline."""
    error = None
    try:
        import_module(f"kikitori.cli.{command}").main()
    except Failed as failed:
        error = failed.error
    if error:  # outside the handler, whose exception would be part of the traceback
        raise error


def _complete() -> None:
    """Completes a command line for a shell: the command itself, then whatever Hydra proposes."""
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
