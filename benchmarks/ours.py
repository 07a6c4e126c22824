"""The contender kikitori: a run from its configuration on, without checkpoints and intermediate validation."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from measure import DEVICE, Meter, Part, activation_mb
from task import WARMUP_STEPS, Task
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer

from kikitori.audio import waveform
from kikitori.config.targets import instantiate
from kikitori.config.validation import check_config
from kikitori.data.datamodule import SpeechDataModule
from kikitori.metrics.error_rates import score_clips
from kikitori.model.processor import make_processor
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.paths import CONF, cache_folder
from kikitori.steps import builders
from kikitori.training import trainer as trainers
from kikitori.training.batch_size_finder import find_micro_batch_sizes
from kikitori.training.callbacks import Progress, ThroughputMonitor
from kikitori.training.history import MetricsFile, TrainingHistory
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.loss import clip_losses


def compose_run(task: Task) -> dict[str, Any]:
    """Composes the configuration of `kikitori train` with the hyperparameters of the tutorial."""
    overrides = [
        f"data.window={task.contender}",
        f"data.global_batch_size={task.batch}",
        f"data.eval_batch_size={task.batch}",
        f"data.limit={{train: {task.train_clips}, validation: {task.eval_clips}, test: 1}}",
        "data.allow_shared_speakers=true",
        "optim={lr: 1e-5, warmup_steps: 0, weight_decay: 0.0, betas: [0.9, 0.999]}",
        f"trainer.max_steps={task.all_steps}",
        f"trainer.precision={task.precision}",
        f"generation.max_new_tokens={task.max_new_tokens}",
        f"seed={task.seed}",
        "logger=none",
        *task.overrides,
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    # Set directly, because the override grammar does not allow every path.
    cfg.data.release, cfg.model.name, cfg.callbacks = task.release, task.model, {}
    return check_config(cfg)


def build_data(config: dict[str, Any], trainer: pl.Trainer | None = None) -> SpeechDataModule:
    return builders.build_data({**config, "splits": ["train", "validation"]}, trainer)


def prepare(task: Task) -> dict[str, Any]:
    """Reads, decodes and filters the corpus: everything before the first batch, on one core."""
    torch.set_num_threads(1)
    quiet_libraries()
    config = compose_run(task)
    of_model = config["model"]
    tokenizer, sizes = WhisperTokenizer.from_pretrained(task.model), WhisperConfig.from_pretrained(task.model)
    processor = make_processor(tokenizer, sizes, of_model["language"], of_model["task"], "benchmark")
    data = build_data(config).with_processor(processor)
    waveform.decode(next(Path(task.release, "clips").iterdir()))  # one-time initialisation is not a cost per clip
    start = time.perf_counter()
    data.setup()
    seconds = time.perf_counter() - start
    clips = sum(map(len, data.clips.values()))
    size = sum(path.stat().st_size for path in (cache_folder() / "store").glob("*.arrow"))
    return {"prepare": {"clips": clips, "seconds": seconds, "clips_per_s": clips / seconds, "bytes": size / clips}}


def train(task: Task) -> dict[str, Any]:
    """Trains, then validates, with the callbacks of every run."""
    quiet_libraries()
    config = compose_run(task)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    meter = Meter(WARMUP_STEPS, task.all_steps)
    callbacks = [
        TrainingHistory(),
        ThroughputMonitor(),
        Progress(task.path),
        EndOfStep(meter),
    ]
    settings, _ = trainers.resolve_trainer_settings(config["trainer"], torch.cuda.device_count())
    trainer = trainers.build_trainer(settings, task.path, callbacks, [MetricsFile(task.path)], task.all_steps)
    data = build_data(config, trainer)
    whisper = builders.build_model(config)
    whisper.set_window(data.window)
    data = data.with_processor(whisper.processor)
    data.setup()
    whisper.configure_generation(**config["generation"])
    sizes = find_micro_batch_sizes(trainer, whisper, data)
    clip_norm = config["trainer"]["gradient_clip_val"]
    module = WhisperModule(whisper, instantiate(config["optim"], "optim"), clip_norm, sizes)
    trainer.fit(module, datamodule=data)
    measured = meter.measured(whisper.model.config, task.precision) | sizes_of(trainer, whisper)
    module.to(DEVICE).train()
    kept = activation_mb(lambda *shape: loss(module, *shape), whisper.model, meter.parts, task.precision)
    score_clips(["一"], ["二"], data.language)  # loads Sudachi's dictionary, once per run
    start = time.perf_counter()
    (scores,) = trainer.validate(module, datamodule=data, verbose=False)
    seconds = time.perf_counter() - start
    clips = len(data.clips["validation"])
    evaluated = {"clips": clips, "seconds": seconds, "clips_per_s": clips / seconds, "cer": scores["val/cer"]}
    return {"train": {**measured, "activation_mb_per_clip": kept}, "evaluate": evaluated}


def sizes_of(trainer: pl.Trainer, whisper: Whisper) -> dict[str, float]:
    """Returns the number of trained weights, and the MB of all weights as they are stored in training, of the
    optimizer's state, and of all that a checkpoint holds.
    """
    state = [value for of in trainer.optimizers[0].state.values() for value in of.values() if torch.is_tensor(value)]
    stored = [*whisper.model.parameters(), *whisper.model.buffers()]
    optimizer, weights = (sum(tensor.nbytes for tensor in of) / 1e6 for of in (state, stored))
    checkpoint = optimizer + 4e-6 * whisper.num_parameters  # in fp32
    trained = sum(weight.numel() for weight in whisper.model.parameters() if weight.requires_grad)
    return {"trained_weights": trained, "weights_mb": weights, "optimizer_mb": optimizer, "checkpoint_mb": checkpoint}


class EndOfStep(pl.Callback):
    """Passes the parts of each step to the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        tokens = batch["labels"].shape[1]
        self.meter.end_of_step([Part(len(part), part.shape[2], tokens) for part in batch["input_features"]])


def loss(module: WhisperModule, clips: int, frames: int, tokens: int) -> Tensor:
    """Returns the loss of synthetic clips."""
    features = torch.zeros(clips, module.processor.num_mel_bins, frames, device=DEVICE)
    labels = torch.ones(clips, tokens, dtype=torch.int64, device=DEVICE)
    return clip_losses(module.model, encode(module.model, features), labels).sum()
