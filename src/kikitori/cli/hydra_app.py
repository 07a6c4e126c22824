"""How train, evaluate and prepare run under Hydra: checked compositions, our --help, and errors shown alone."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kikitori.cli.limits import limit_reading, start_counting
from kikitori.config import composition
from kikitori.config.overrides import PATHS, leaves, settle, to_plain
from kikitori.config.targets import instantiate
from kikitori.runs.results import RESULTS, ended_before_scoring
from kikitori.runs.resume import keep_changed_defaults
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError, Failed, KikitoriError, one_line
from kikitori.runtime.files import expanded, remove_if_nothing_else
from kikitori.runtime.paths import check_run_folder, run_folder

Result = TypeVar("Result")


def guard_hydra() -> None:
    """Checks every configuration that Hydra composes in this process from now on, and builds what it names.

    Configurations cannot be read from packages, which would import them. Only for commands: it changes Hydra for the
    whole process.
    """
    limit_reading()
    check_folder = cache(check_run_folder)  # a sweep composes a configuration for each of its trials
    compose = ConfigLoaderImpl.load_configuration
    if hasattr(compose, "__wrapped__"):
        return

    @wraps(compose)
    def checked(self: Any, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> DictConfig:
        start_counting()
        try:
            cfg: DictConfig = compose(self, config_name, overrides, *args, **kwargs)
        except (HydraException, OmegaConfBaseException, YAMLError, OSError, KikitoriError):
            raise
        except Exception as error:  # Hydra expects the types of its own node
            raise ConfigError(f"the configuration cannot be composed ({one_line(error)}); correct its file") from error
        composition.check(cfg, overrides)
        settle(cfg, overrides)
        with suppress(OmegaConfBaseException):  # composed outside of a command, where the default folder has no name
            node = "sweep" if cfg.hydra.mode is RunMode.MULTIRUN else "run"
            folder = Path(str(cfg.hydra[node].dir))
            check_folder(folder.absolute(), f"hydra.{node}.dir")
            keep_changed_defaults(cfg, overrides, folder)
        return cfg

    open_sources = ConfigRepository.initialize_sources

    @wraps(open_sources)
    def opened(self: Any, config_search_path: ConfigSearchPath) -> None:
        for place in config_search_path.get_path():
            named_by_a_user = place.provider == "main" or place.provider.startswith("hydra.searchpath")
            if named_by_a_user and self._get_scheme(place.path) != "file":
                raise ConfigError(f"{place.path} would import a package to read configurations; give an absolute path")
        open_sources(self, config_search_path)

    get_help = Hydra.get_help

    @wraps(get_help)
    def quick_help(self: Any, help_cfg: DictConfig, *args: Any, **kwargs: Any) -> str:
        # Our template is the whole text (`documentation.help_text`). Hydra would first list all its own groups, which
        # takes longer than everything else that --help does.
        is_ours = "app_name" in help_cfg
        return help_cfg.template if is_ours else get_help(self, help_cfg, *args, **kwargs)

    def built(self: Any, config: DictConfig) -> Any:
        node = to_plain(config)
        if node.get("submitit_folder"):
            # submitit loads pickles from there. Into a folder of a new name nobody else can have put any.
            node["submitit_folder"] += f"/{token_hex(8)}"
        return instantiate(node, config._get_full_key(None))

    ConfigLoaderImpl.load_configuration = checked
    ConfigRepository.initialize_sources = opened
    Hydra.get_help = quick_help
    Plugins._instantiate = built


def run_pipeline(pipeline: Callable[[DictConfig, Path], Result], cfg: DictConfig) -> Result:
    """Runs a pipeline in the folder that Hydra made.

    Raises Failed around the pipeline's error; in a sweep whose trials share this process, the error itself, which
    Hydra's sweepers collect. A run that failed before it had any result leaves no folder.
    """
    folder = run_folder()
    if HydraConfig.get().job.chdir:
        make_paths_absolute(cfg)
    try:
        return pipeline(cfg, folder)
    except Exception as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        # A trial's folder stays: its sweep reads the error from there.
        if isinstance(error, KikitoriError) and is_main() and "KIKITORI_SWEEP" not in os.environ:
            remove_empty_run(folder)
        raise Failed(error) from error


def make_paths_absolute(cfg: DictConfig) -> None:
    """Makes paths absolute that are relative to where the command was started: hydra.job.chdir has left that folder."""
    start = Path(HydraConfig.get().runtime.cwd)
    for key in PATHS:
        node = OmegaConf.select(cfg, key, throw_on_missing=False)
        for part, path in leaves(OmegaConf.to_container(node) if OmegaConf.is_config(node) else node, key, True):
            if isinstance(path, str) and (start / expanded(path)).exists():
                OmegaConf.update(cfg, part, str(start / expanded(path)))


def remove_empty_run(folder: Path) -> None:
    """Removes the folder of a run that failed before it had any result: if it holds only what every start writes."""
    if (folder / RESULTS).exists() and not ended_before_scoring(folder):
        return
    start = [*(folder / ".hydra").glob("*.yaml"), folder / ".lock", folder / RESULTS, *folder.glob("*.log")]
    remove_if_nothing_else(
        folder, [*start, *(path for path in folder.glob("rejects.jsonl") if not path.stat().st_size)]
    )
