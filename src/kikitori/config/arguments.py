"""The arguments of library classes that a configuration may set, and what to use instead of each other one.

One table: an argument with a type or range means what the library's documentation says. `instead` marks one that would
be ignored here, or do something else. An argument that is not in the table is refused, so that a new version of a
library adds none unseen. Arguments of kikitori's own functions are read from their signatures instead.
"""

import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; annotations that are not handled here accept everything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(item, hint) for item in value for hint in arguments)
    if origin in (dict, Mapping) or hint is dict:
        return isinstance(value, Mapping)
    if hint in (int, float, str, bool, type(None)):
        types_of_hint = (int, float) if hint is float else hint
        return isinstance(value, types_of_hint) and (hint is bool or not isinstance(value, bool))
    return True


def describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # A whole number is a number.
        words_of_all = [describe(argument) for argument in arguments if not (argument is int and float in arguments)]
        return " or ".join(words_of_all)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    plural = {int: "whole numbers", float: "numbers", str: "texts"}
    items = plural.get(arguments[0]) if len(set(arguments)) == 1 else None
    if origin is tuple:
        return f"a list of {len(arguments)}{f' {items}' if items else ''}"
    if origin in (list, Sequence):
        return f"a list{f' of {items}' if items else ''}"
    return words.get(hint, "a mapping")


class Rule(NamedTuple):
    """A rule for the value of an argument.

    accepts: whether a plain value is allowed. otherwise: what it must be, or what to use instead of the argument.
    is_replaced: whether the argument is one to leave out.
    """

    accepts: Callable[[Any], bool]
    otherwise: str
    is_replaced: bool = False

    def fault(self, value: Any) -> str:
        """The message for a value that is not accepted."""
        must_be, semicolon, remedy = self.otherwise.partition(";")
        return self.otherwise if self.is_replaced else f"{must_be}, got {value!r}{semicolon}{remedy}"


def of_type(hint: Any) -> Rule:
    """Any value of an annotated type."""
    return Rule(lambda value: fits(value, hint), f"must be {describe(hint)}")


def one_of(*values: Any, because: str = "") -> Rule:
    """One of these values."""
    names = {None: "null", True: "true", False: "false"}
    *others, last = (str(names.get(value, value)) for value in values)
    words = f"{', '.join(others)} or {last}" if others else last
    return Rule(lambda value: _is_among(value, values), f"must be {words}{because}")


def _is_among(value: Any, values: Sequence[Any]) -> bool:
    # A batch and the whole of an epoch are 1 and 1.0 in Lightning, and True equals both.
    return any(value == other and type(value) is type(other) for other in values)


def at_least(low: float, kind: Any = int, optional: bool = False) -> Rule:
    """A number from `low` on; null too, if it is optional."""
    words = f"must be {describe(kind)} of at least {low}" + " or null" * optional
    return Rule(lambda value: (optional and value is None) or (fits(value, kind) and value >= low), words)


def chosen(choices: str, *others: Any) -> Rule:
    """A node that a choice of its group fills. others: the values that it may have instead."""
    return Rule(
        lambda value: (isinstance(value, Mapping) and "_target_" in value) or _is_among(value, others),
        f"needs a choice of its group first: {choices}",
    )


def instead(remedy: str, *neutral: Any) -> Rule:
    """An argument to leave out. neutral: the values that change nothing, besides null."""
    return Rule(lambda value: value is None or _is_among(value, neutral), remedy, True)


NUMBER = float | None
PRECISIONS = ("auto", "16-mixed", "bf16-mixed", "32", "32-true")
BOOLEAN = of_type(bool | None)
TEXT = of_type(str | None)
SCORES = ("val/cer", "val/wer", "val/loss")
OF_PREDICTIONS = "set data.limit.test, .validation or score.train_clips"
OWN_FILES = "a run writes last.ckpt and the best checkpoints by itself"
AFTER_VALIDATIONS = "a checkpoint is chosen by its validation score; set validation.every_steps"
TRAINER: dict[str, Rule] = {
    "accelerator": one_of("auto", "cpu", "gpu", "cuda"),
    "devices": Rule(
        lambda value: value == "auto" or (fits(value, int) and value > 0),
        "must be a number of devices above 0, or auto; to choose GPUs, set CUDA_VISIBLE_DEVICES=0,2 in the environment",
    ),
    "num_nodes": at_least(1),
    "strategy": Rule(
        lambda value: (
            value.get("_target_") == "kikitori.ddp" if isinstance(value, Mapping) else value in ("auto", "ddp")
        ),
        "must be auto or ddp; for several devices, choose trainer=ddp. Sharded strategies (fsdp, deepspeed) would clip "
        "gradients by the norm of a shard, and kikitori starts the processes itself",
    ),
    "precision": Rule(
        lambda value: str(value) in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}; weights stay in 32 bits"
    ),
    "max_steps": at_least(1, optional=True),
    "max_epochs": at_least(1, optional=True),
    "gradient_clip_val": Rule(
        lambda value: value is None or (fits(value, float) and value > 0),
        "must be a number above 0, or null for no clipping",
    ),
    "gradient_clip_algorithm": instead("gradients are clipped by their norm; leave it out", "norm"),
    "log_every_n_steps": at_least(0),
    "deterministic": one_of(True, False, "warn", "auto", None),
    "benchmark": BOOLEAN,
    "detect_anomaly": of_type(bool),
    "inference_mode": of_type(bool),
    "profiler": one_of("simple", "advanced", None),
    "accumulate_grad_batches": instead(
        "data.global_batch_size is the size of a step's batch; data.micro_batch_size splits it to fit into memory", 1
    ),
    "barebones": instead("leave it out: it would switch off checkpoints and metrics", False),
    "callbacks": instead("add one as +callbacks.NAME._target_=its.full.name"),
    "check_val_every_n_epoch": instead("set validation.every_epochs or validation.every_steps"),
    "default_root_dir": instead("set hydra.run.dir"),
    "enable_autolog_hparams": instead("leave it out: the configuration is logged by the loggers", True),
    "enable_checkpointing": instead("leave it out: a run needs checkpoints to resume and to choose the best one", True),
    "enable_model_summary": instead("leave it out: results.json has the number of parameters", False),
    "enable_progress_bar": instead("a terminal shows a bar, other outputs get lines: kikitori train ... | cat"),
    "fast_dev_run": instead("set trainer.max_steps=2 and data.limit.train=8, .validation=8, .test=8", False, 0),
    "limit_predict_batches": instead(OF_PREDICTIONS, 1.0),
    "limit_test_batches": instead("set data.limit.test", 1.0),
    "limit_train_batches": instead("set data.limit.train, or trainer.max_steps for a shorter training", 1.0),
    "limit_val_batches": instead("set data.limit.validation", 1.0),
    "logger": instead("choose logger=wandb, tensorboard, both or none"),
    "max_time": instead(
        "set trainer.max_steps or max_epochs; to stop at a time and resume later: timeout -s INT 8h kikitori train ..."
    ),
    "min_epochs": instead("set callbacks.early_stopping.patience: training ends early for no other reason"),
    "min_steps": instead("set callbacks.early_stopping.patience: training ends early for no other reason"),
    "model_registry": instead("leave it out; logger.wandb.log_model=true uploads the best model"),
    "num_sanity_val_steps": instead("leave it out: all splits are scored before training", 0),
    "overfit_batches": instead("set data.limit.train=8", 0, 0.0),
    "plugins": instead("set trainer.precision and trainer.strategy"),
    "reload_dataloaders_every_n_epochs": instead("leave it out: the clips of a step follow from seed and step", 0),
    "sync_batchnorm": instead("leave it out: Whisper has no batch normalisation", False),
    "use_distributed_sampler": instead("leave it out: the clips are shared among the processes, each clip once", False),
    "val_check_interval": instead("set validation.every_epochs or validation.every_steps"),
}
CHECKPOINT: dict[str, Rule] = {
    "monitor": one_of(*SCORES),
    "mode": one_of("min", because="; lower is better for every score"),
    "verbose": of_type(bool),
    "save_top_k": Rule(
        lambda value: fits(value, int) and (value > 0 or value == -1),
        "must be the number of best checkpoints to keep, above 0, or -1 for all",
    ),
    "save_weights_only": of_type(bool),
    "enable_version_counter": of_type(bool),
    "dirpath": instead("leave it out: checkpoints are in the run's folder, see hydra.run.dir"),
    "filename": instead("leave it out: files are named step-N.ckpt", "step-{step}"),
    "auto_insert_metric_name": instead("leave it out: files are named step-N.ckpt", False),
    "save_last": instead(f"leave it out: {OWN_FILES}", False),
    "save_on_exception": instead(f"leave it out: {OWN_FILES}", False),
    "every_n_train_steps": instead(AFTER_VALIDATIONS, 0),
    "every_n_epochs": instead(AFTER_VALIDATIONS, 1),
    "train_time_interval": instead(AFTER_VALIDATIONS),
    "save_on_train_epoch_end": instead(AFTER_VALIDATIONS, False),
}
EARLY_STOPPING: dict[str, Rule] = {
    "monitor": one_of(*SCORES),
    "mode": one_of("min", because="; lower is better for every score"),
    "patience": at_least(0),
    "min_delta": of_type(float),
    "stopping_threshold": of_type(NUMBER),
    "divergence_threshold": of_type(NUMBER),
    **dict.fromkeys(("verbose", "strict", "check_finite", "log_rank_zero_only"), of_type(bool)),
    "check_on_train_epoch_end": instead("leave it out: it is checked after each validation", False),
}
# Lightning would take an address for a remote file system.
LOCAL = Rule(lambda value: fits(value, str) and not re.search("://|::", value), "must be a folder of this machine")
BELOW = Rule(
    lambda value: fits(value, int | str | None) and not re.search(r"^[/~]|://|::|\.\.", str(value)),
    "must be a name, or a path below save_dir",
)
TENSORBOARD: dict[str, Rule] = {
    "save_dir": LOCAL,
    **dict.fromkeys(("name", "sub_dir", "version", "filename_suffix"), BELOW),
    **dict.fromkeys(("prefix", "comment"), of_type(str)),
    "default_hp_metric": of_type(bool),
    **dict.fromkeys(("max_queue", "flush_secs"), at_least(1)),
    "log_graph": instead("leave it out: the graph of a Whisper needs an example", False),
    "purge_step": instead("leave it out: a resumed run writes a further file"),
}
# Each becomes a line of a job's script. There a further line would be a command, and sbatch, unlike a shell, lets a
# backslash escape the quote that ends a value: what follows would be options.
LINE = Rule(
    lambda value: fits(value, int | str | None) and len(str(value).splitlines()) < 2 and not {*"\\\0"} & {*str(value)},
    "must be a text of one line without backslashes, or null",
)
SUBMITIT: dict[str, Rule] = {
    **dict.fromkeys(("submitit_folder", "name"), LINE),
    **dict.fromkeys(("timeout_min", "nodes", "tasks_per_node"), at_least(1)),
    "cpus_per_task": at_least(1, optional=True),
    "gpus_per_node": at_least(0, optional=True),
    "mem_gb": of_type(NUMBER),
    "stderr_to_stdout": of_type(bool),
}
SLURM: dict[str, Rule] = {
    **SUBMITIT,
    **dict.fromkeys(
        (
            *("partition", "qos", "comment", "constraint", "exclude", "gres", "account", "mem_per_gpu", "mem_per_cpu"),
            *("mail_type", "mail_user", "nodelist", "dependency", "wckey"),
        ),
        LINE,
    ),
    **dict.fromkeys(("cpus_per_gpu", "gpus_per_task"), at_least(1, optional=True)),
    **dict.fromkeys(("array_parallelism", "signal_delay_s"), at_least(1)),
    "max_num_timeout": at_least(0),
    "exclusive": Rule(lambda value: isinstance(value, bool) or LINE.accepts(value), LINE.otherwise),
    "additional_parameters": of_type(dict),
    **dict.fromkeys(("setup", "teardown", "srun_args"), of_type(list[str] | None)),
    "python": TEXT,
    "time": instead("set hydra.launcher.timeout_min"),
    "job_name": instead("set hydra.launcher.name"),
    "mem": instead("set hydra.launcher.mem_gb"),
    "ntasks_per_node": instead("set hydra.launcher.tasks_per_node"),
    "num_gpus": instead("set hydra.launcher.gpus_per_node"),
    "use_srun": instead("leave it out: srun starts the processes of a trial", True),
}
SEED = at_least(0, optional=True)
PYTHON = "leave it out: a configuration cannot hold a Python object"
SAMPLERS: dict[str, dict[str, Rule]] = {
    "CmaEs": {
        "seed": SEED,
        "sigma0": of_type(NUMBER),
        "x0": of_type(dict | None),
        "n_startup_trials": at_least(0),
        "restart_strategy": one_of(None, "ipop", "bipop"),
        "popsize": at_least(2, optional=True),
        "inc_popsize": of_type(int),
        **dict.fromkeys(
            ("warn_independent_sampling", "consider_pruned_trials", "use_separable_cma", "with_margin", "lr_adapt"),
            of_type(bool),
        ),
        "independent_sampler": instead(PYTHON),
        "source_trials": instead(PYTHON),
    },
    "Grid": {"seed": SEED, "search_space": instead("give the values on the command line: optim.lr=choice(1e-4, 1e-5)")},
    "Random": {"seed": SEED},
    "TPE": {
        "seed": SEED,
        "n_startup_trials": at_least(0),
        "n_ei_candidates": at_least(1),
        "prior_weight": of_type(NUMBER),
        **dict.fromkeys(("consider_prior", "consider_magic_clip", "consider_endpoints", "multivariate"), BOOLEAN),
        **dict.fromkeys(("group", "constant_liar"), of_type(bool)),
        "warn_independent_sampling": BOOLEAN,
        **dict.fromkeys(("gamma", "weights", "constraints_func"), instead(PYTHON)),
    },
}
RESOURCE = Rule(
    lambda value: value == "auto" or (fits(value, int) and value > 0), "must be a whole number above 0, or auto"
)
PRUNERS: dict[str, dict[str, Rule]] = {
    "Hyperband": {
        "min_resource": Rule(
            lambda value: fits(value, int) and value > 0,
            "must be a whole number of steps above 0; with validation.every_epochs, set it yourself",
        ),
        "max_resource": RESOURCE,
        "reduction_factor": at_least(2),
        "bootstrap_count": at_least(0),
    },
    "SuccessiveHalving": {
        "min_resource": RESOURCE,
        "reduction_factor": at_least(2),
        # The reduction factor is raised to its power.
        "min_early_stopping_rate": Rule(lambda value: fits(value, int) and 0 <= value <= 20, "must be 0 to 20"),
        "bootstrap_count": at_least(0),
    },
}
# Arguments that must be given, since nothing here can be done without them.
REQUIRED = {
    "pytorch_lightning.callbacks.ModelCheckpoint": ("monitor",),
    "pytorch_lightning.callbacks.EarlyStopping": ("monitor",),
    "pytorch_lightning.loggers.TensorBoardLogger": ("save_dir",),
}
# With Lightning's own, a checkpoint of weights alone has those that were not validated.
AVERAGED = "the weights that are validated, saved and resumed would be different ones"
# Lightning's other callbacks, by what makes them wrong here.
CALLBACKS = {
    "BackboneFinetuning": "set model.freeze=encoder",
    "BatchSizeFinder": "set data.micro_batch_size=auto",
    "EMAWeightAveraging": f"{AVERAGED}; set ema.decay",
    "GradientAccumulationScheduler": "set data.global_batch_size",
    "LearningRateFinder": "compare learning rates in a sweep, as in sweep=lr",
    "LearningRateMonitor": "metrics.csv and the loggers have the learning rate already",
    "ModelPruning": "its masks would not be in the saved model",
    "ModelSummary": "results.json has the number of parameters",
    "OnExceptionCheckpoint": OWN_FILES,
    "RichModelSummary": "results.json has the number of parameters",
    "RichProgressBar": "a terminal shows a bar, other outputs get lines",
    "SpikeDetection": "a loss that is not finite ends the run, with its clips named",
    "StochasticWeightAveraging": "it replaces the schedule of optim, and the weights that were validated",
    "ThroughputMonitor": "metrics.csv and the loggers have train/clips_per_s already",
    "TQDMProgressBar": "a terminal shows a bar, other outputs get lines",
    "Timer": "stop the run instead and resume it later: timeout -s INT 8h kikitori train ...",
    "WeightAveraging": f"{AVERAGED}; set ema.decay",
}
_OURS = "hydra_plugins.kikitori_plugins"
_PLUGINS = "hydra._internal.core_plugins"
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
ARGUMENTS: dict[str, dict[str, Rule]] = {
    "pytorch_lightning.Trainer": TRAINER,
    "pytorch_lightning.callbacks.ModelCheckpoint": CHECKPOINT,
    "pytorch_lightning.callbacks.EarlyStopping": EARLY_STOPPING,
    "pytorch_lightning.callbacks.DeviceStatsMonitor": {"cpu_stats": BOOLEAN},
    "pytorch_lightning.loggers.TensorBoardLogger": TENSORBOARD,
    f"{_OURS}.LocalLauncher": {"parallel": at_least(1, optional=True), "gpus_per_trial": at_least(1)},
    f"{_OURS}.OptunaSweeper": {
        **dict.fromkeys(("n_trials", "batch"), at_least(1)),
        **dict.fromkeys(("study", "study_name"), of_type(str)),
        "sampler": chosen("hydra/sweeper/sampler=tpe, cmaes, random or grid"),
        "pruner": chosen("hydra/sweeper/pruner=hyperband or successive_halving", None),
        "params": of_type(dict | None),
    },
    f"{_PLUGINS}.basic_launcher.BasicLauncher": {},
    f"{_PLUGINS}.basic_sweeper.BasicSweeper": {
        "max_batch_size": at_least(1, optional=True),
        "params": of_type(dict | None),
    },
    f"{_SUBMITIT}.LocalLauncher": SUBMITIT,
    f"{_SUBMITIT}.SlurmLauncher": SLURM,
    **{f"optuna.samplers.{name}Sampler": rules for name, rules in SAMPLERS.items()},
    **{f"optuna.pruners.{name}Pruner": rules for name, rules in PRUNERS.items()},
}
