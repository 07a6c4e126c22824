"""The LightningModule: connects a Whisper's loss, generation and scores with the Trainer."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from kikitori.adapters.adaptive_ranks import AdaptiveRanks
from kikitori.adapters.settings import NO_AVERAGE, AdaLora
from kikitori.data.collate import IGNORE_INDEX, Batch
from kikitori.data.datamodule import SpeechDataModule
from kikitori.inference.generate import Generated, generate
from kikitori.metrics.error_rates import edits_and_lengths, score_clips
from kikitori.model.loading import rebuild_whisper
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper, check_whisper, encode
from kikitori.model.window import describe_window
from kikitori.optim.average import WeightAverage, check_decay, split
from kikitori.optim.optimizers import OptimizerFactory, check_factory, reconfigure
from kikitori.runtime.errors import ConfigError, OutOfMemory, is_out_of_memory
from kikitori.runtime.rng import separate_random_state
from kikitori.training.batch_size_finder import check_sizes, find_micro_batch_sizes, micro_batches, split_on_oom
from kikitori.training.callbacks import SkippedSteps
from kikitori.training.loss import check_label_smoothing, clip_losses
from kikitori.training.trainer import refuse_unsupported

log = logging.getLogger(__name__)

# How often a step may be halved after running out of memory. Beyond that the run stops and names the setting to change.
MAX_OOM_SPLIT = 4


class Prediction(NamedTuple):
    """The transcript of one clip. cut: whether it was cut off, see `kikitori.inference.generate.Generated`."""

    clip: str
    reference: str
    hypothesis: str
    cut: bool


class WhisperModule(pl.LightningModule):
    """Fine-tunes a Whisper, which is then its `whisper`.

    make_optimizer: such as `adamw(lr=1e-4)`; None if nothing is trained. clip_norm: the norm to which gradients are
    clipped; None for no clipping. micro_batch_sizes: clips that a forward and backward pass computes at once, by the
    log-Mel frames of their window; a window without an entry takes all clips of the step. None: as the attached
    SpeechDataModule has it. Loss and gradients do not depend on it.
    label_smoothing: of the training loss; the validation loss has none, so that runs compare. ema_decay: of an average
    of the weights, which is validated and saved while the weights themselves go on training; None for no average.
    recipe: builds the model if there is no `whisper`, for `load_from_checkpoint(path)`. It is the checkpoint's only
    hyper-parameter and holds plain values, so that checkpoints load with weights_only=True.
    """

    def __init__(
        self,
        whisper: Whisper | None = None,
        make_optimizer: OptimizerFactory | None = None,
        clip_norm: float | None = 1.0,
        micro_batch_sizes: Mapping[int, int] | None = None,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # A step's clips take several forward and backward passes, one per window and micro-batch; Lightning's automatic
        # optimization has only one.
        self.automatic_optimization = False
        if whisper is None and recipe is None:
            raise ConfigError("WhisperModule has no model; pass one, such as kikitori.load_whisper(name)")
        if whisper is not None:
            check_whisper(whisper, "WhisperModule")
        check_factory(make_optimizer)
        check_sizes(micro_batch_sizes)
        check_label_smoothing(label_smoothing)
        check_decay(ema_decay)
        self.whisper = whisper or rebuild_whisper(recipe or {})
        self.model = self.whisper.model
        self.processor = self.whisper.processor
        self.make_optimizer = make_optimizer
        self.clip_norm = clip_norm
        self.micro_batch_sizes = micro_batch_sizes
        self.label_smoothing = label_smoothing
        self.ema_decay = ema_decay
        self.average: WeightAverage | None = None
        # The updates and averages of the checkpoint that a training resumes from.
        self._averaged: tuple[int, dict[str, Tensor]] = (0, {})
        self._found_sizes: Mapping[int, int] = {}
        # Divisor of the micro-batch sizes, doubled whenever a step runs out of memory.
        self.oom_split = 1
        self.save_hyperparameters({"recipe": self.whisper.recipe}, logger=False)
        self._totals: list[Tensor] = []

    def configure_callbacks(self) -> list[pl.Callback]:
        # The first hook that Lightning calls: before its own checks, whose messages cannot name our settings.
        refuse_unsupported(self.trainer)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        if self.make_optimizer is None:
            raise ConfigError(
                "WhisperModule has no optimizer; pass one: WhisperModule(whisper, kikitori.adamw(lr=1e-5))"
            )
        refuse_layerdrop(self.model.config, self.trainer.world_size)
        adapter = self.whisper.adapter
        if isinstance(adapter, AdaLora) and self.ema_decay is not None:
            raise ConfigError(f"ema_decay={self.ema_decay}: {NO_AVERAGE}")
        return [SkippedSteps(), *([AdaptiveRanks(self.model, adapter)] if isinstance(adapter, AdaLora) else [])]

    def setup(self, stage: str) -> None:
        """Takes over the windows, micro-batch sizes and encoder caches of an attached SpeechDataModule.

        Raises ConfigError if it was made for another model.
        """
        if data := self._data():
            self._take_over(data, stage)
        if stage == "fit":
            separate_random_state(self.trainer.global_rank)
            # That of an earlier training, whose averaged weights are the model now.
            self.average = None
        # Again, because the model may have been configured since it was passed.
        self.save_hyperparameters({"recipe": self.whisper.recipe}, logger=False)

    def _take_over(self, data: SpeechDataModule, stage: str) -> None:
        processor = data.model_processor()
        check_same_inputs(processor, self.processor)
        if processor.window != self.processor.window:
            self.whisper.set_window(processor.window)
            self.processor = self.whisper.processor
            log.info("clips are padded to %s, also when the model transcribes", describe_window(processor.window))
        if stage == "fit":
            self.whisper.set_trained_on(data.trained_on())
            self.whisper.set_languages(data.languages)
        if stage == "fit" and self.micro_batch_sizes is None:
            averaged = self.ema_decay is not None
            self._found_sizes = find_micro_batch_sizes(self.trainer, self.whisper, data, averaged)
        if data.cache_encoder_outputs:
            data.build_encoder_caches(self.trainer, self.model)

    def _data(self) -> SpeechDataModule | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, SpeechDataModule) else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step. Returns the mean loss over the global batch's tokens, see `kikitori.data.sampler`."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        batch["weights"] = self._weights(batch)
        optimizer.zero_grad()
        total = self._forward_and_backward(batch)
        while total is None:
            # Outside the exception handler, whose traceback keeps the tensors that did not fit.
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            total = self._forward_and_backward(batch)
        lr = optimizer.param_groups[0]["lr"]
        try:
            optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"step {self.trainer.global_step + 1}: the optimizer's state does not fit into memory; it takes twice "
                "the size of the trained weights: pass model.freeze=encoder, or use a smaller model"
            ) from error
        scheduler.step()
        if self.average:
            self.average.update()
        # Lightning logs a metric `step` as the step of the others; its own counts from 0. On the CPU, where they are.
        self.log("step", torch.tensor(float(self.trainer.global_step)))
        self.log("train/lr", torch.tensor(lr, dtype=torch.float64))
        # To show it, a progress bar waits for the end of each step.
        shown = self.trainer.progress_bar_callback is not None
        self.log("train/loss", total, prog_bar=shown, batch_size=len(batch["clips"]), sync_dist=True)
        return total

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Lightning logs by this counter, which is off by one after some resumes.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def _weights(self, batch: Batch) -> Tensor:
        """The batch's weights; for a loader without any, 1 / supervised tokens of all processes."""
        if batch["weights"] is not None:
            return batch["weights"]
        tokens = (batch["labels"] != IGNORE_INDEX).sum().float()
        # DDP averages over the processes.
        weight = self.trainer.world_size / self.trainer.strategy.reduce(tokens, reduce_op="sum")
        return weight.expand(len(batch["labels"]))

    def _forward_and_backward(self, batch: Batch) -> Tensor | None:
        """Computes a step's gradients and returns its loss; None if memory ran out: then micro-batches are halved."""
        losses, weights = [], batch["weights"]
        assert weights is not None
        sizes = self._found_sizes if self.micro_batch_sizes is None else self.micro_batch_sizes
        try:
            for features, rows in micro_batches(batch, sizes, self.oom_split):
                last = rows.stop == len(batch["labels"])
                with nullcontext() if last else self.no_sync():
                    states = self.encoder_states(batch, features)
                    losses_of = self._losses(batch, states, rows, self.label_smoothing)
                    loss = (losses_of * weights[rows]).sum()
                    self.manual_backward(loss)
                losses.append(loss.detach())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            clips = len(features)
            # With DDP a step cannot be repeated: not without the others, and its averaging of gradients has begun.
            if clips == 1 or self.oom_split == MAX_OOM_SPLIT or self._ddp:
                raise OutOfMemory(
                    f"step {self.trainer.global_step + 1}: {clips} clips of {features.shape[-1]} frames at once do not "
                    f"fit into memory; pass data.micro_batch_size={max(1, clips // 2)}, data.window=bucketed, "
                    "model.gradient_checkpointing=true, or use a smaller model"
                ) from error
            self.oom_split *= 2
            log.warning(
                "step %d: %d clips at once do not fit into memory; micro-batches are half as large from here on "
                "(see data.micro_batch_size); the clips of a step stay the same",
                self.trainer.global_step + 1,
                clips,
            )
            return None
        return torch.stack(losses).sum()

    def _losses(self, batch: Batch, states: Tensor, rows: slice, label_smoothing: float = 0.0) -> Tensor:
        """The summed loss of each clip of a micro-batch."""
        inputs = batch["decoder_input_ids"]
        own_inputs = None if inputs is None else inputs[rows]
        tokens = sum(batch["num_tokens"][rows])
        return clip_losses(self.model, states, batch["labels"][rows], tokens, own_inputs, label_smoothing)

    def no_sync(self) -> AbstractContextManager[Any]:
        """A context without gradient averaging: processes average once per step, in its last micro-batch."""
        return self._ddp.no_sync() if self._ddp else nullcontext()

    @property
    def _ddp(self) -> DistributedDataParallel | None:
        """The wrapper that averages the gradients of several processes, or of one process with the DDP strategy."""
        wrapped = self.trainer.strategy.model
        return wrapped if isinstance(wrapped, DistributedDataParallel) else None

    def encoder_states(self, batch: Batch, part: Tensor) -> Tensor:
        """Encoder outputs of a micro-batch, computed unless the batch holds them already."""
        return part if batch["encoder_states"] else encode(self.model, part)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # In this hook, because Lightning has undone the loss scaling by now.
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.grad is not None), self.clip_norm)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums losses, edits and lengths: a rate is all edits over all lengths, independent of the batches."""
        tokens = (batch["labels"] != IGNORE_INDEX).sum()

        def assess(features: Tensor, rows: slice) -> tuple[Tensor, list[Generated]]:
            # One encoder pass for both.
            states = self.encoder_states(batch, features)
            return self._losses(batch, states, rows).sum(), self._generate(batch, states, rows)

        losses, parts = zip(
            *(found for part in micro_batches(batch) for found in split_on_oom(assess, *part)), strict=True
        )
        loss, generated = torch.stack(losses).sum(), list(chain.from_iterable(parts))
        languages = [self.processor.of(code).text_language for code in batch["languages"]]
        scores = score_clips(batch["texts"], [row.text for row in generated], languages)
        cer, wer = (edits_and_lengths(scores, rate).sum(axis=0) for rate in ("cer", "wer"))
        cut = sum(row.cut for row in generated)
        counts = torch.tensor([*cer, *wer, cut, len(generated)], dtype=torch.float64)
        self._totals.append(torch.cat([torch.stack([loss, tokens]).cpu().double(), counts]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`; logged as test/loss, test/cer, test/wer and test/cut."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_rates("val")

    def on_test_epoch_end(self) -> None:
        self._log_rates("test")

    def _log_rates(self, prefix: str) -> None:
        totals = torch.stack(self._totals).sum(dim=0)
        self._totals.clear()
        # Double precision is exact for counts, but not every accelerator supports it.
        summed = self.trainer.strategy.reduce(totals.to(self.device, torch.float32), reduce_op="sum")
        loss, tokens, cer_edits, cer_length, wer_edits, wer_length, cut, clips = summed.tolist()
        rates = {f"{prefix}/cer": cer_edits / max(cer_length, 1), f"{prefix}/wer": wer_edits / max(wer_length, 1)}
        # The values are equal in all processes already; without sync_dist, Lightning would warn that they may not be.
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), sync_dist=True)
        self.log_dict({f"{prefix}/loss": loss / max(tokens, 1), **rates}, prog_bar=True, sync_dist=True)
        self.log(f"{prefix}/cut", cut / max(clips, 1), sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The prediction of each row."""

        def transcribe(features: Tensor, rows: slice) -> list[Generated]:
            return self._generate(batch, self.encoder_states(batch, features), rows)

        generated = [row for part in micro_batches(batch) for rows in split_on_oom(transcribe, *part) for row in rows]
        return [
            Prediction(clip, reference, row.text, row.cut)
            for clip, reference, row in zip(batch["clips"], batch["texts"], generated, strict=True)
        ]

    def _generate(self, batch: Batch, states: Tensor, rows: slice) -> list[Generated]:
        """The text of each clip of a micro-batch, in its own language."""
        return generate(self.whisper, states, batch["seconds"][rows], languages=batch["languages"][rows])

    def on_train_start(self) -> None:
        # A checkpoint restores its optimizer's settings; if they differ from the configured ones, the latter apply.
        schedulers, optimizers = self.trainer.lr_scheduler_configs, self.trainer.optimizers
        reconfigure(optimizers[0], schedulers[0].scheduler, self._configured)
        self._start_average()
        if self.device.type == "cuda":
            # The peak that is logged and reported is that of training.
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_validation_start(self) -> None:
        self._show(averaged=True)

    def on_validation_end(self) -> None:
        self._show(averaged=False)

    def on_train_end(self) -> None:
        # Before Lightning moves the module to the CPU.
        self._show(averaged=True)

    def on_fit_end(self) -> None:
        if not self.average:  # no step was left to take
            self._start_average()
            self._show(averaged=True)

    def _start_average(self) -> None:
        if self.ema_decay is not None:
            self.average = WeightAverage(self, self.ema_decay, self._averaged)
        self._averaged = (0, {})

    def _show(self, averaged: bool) -> None:
        """During a training, the averaged weights are validated, and are the model afterwards."""
        if self.average and self.trainer.state.fn == TrainerFn.FITTING:
            self.average.show(averaged)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average:
            self.average.add_to(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # For scoring, the averaged weights are the model.
        if self._trainer and self.trainer.state.fn == TrainerFn.FITTING:
            self._averaged = split(checkpoint)

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer is not None
        optimizer, scheduler = self.make_optimizer(self.model, self.total_steps())
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> float:
        """Optimizer steps of the whole training, from the Trainer's max_steps and max_epochs; inf without either."""
        trainer, data = self.trainer, self._data()
        if data is None or not trainer.max_epochs or trainer.max_epochs < 0:
            return trainer.estimated_stepping_batches
        # Lightning's estimate would start the training loader, before a checkpoint's step is restored.
        steps = data.steps_per_epoch * trainer.max_epochs
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def refuse_layerdrop(config: Any, world_size: int) -> None:
    """Raises ConfigError for layers that are left out at random on several devices, which average all gradients."""
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        if world_size > 1 and getattr(config, key):
            raise ConfigError(
                f"model.{key}={getattr(config, key)} is not supported on {world_size} devices: each would leave out "
                "other layers, whose gradients cannot be averaged; set it to 0, or use one device"
            )


def check_same_inputs(data: Processor, model: Processor) -> None:
    """Raises ConfigError if the data's processor differs from the model's in more than its windows."""
    if data.tokenizer is not model.tokenizer and data.tokenizer.get_vocab() == model.tokenizer.get_vocab():
        data = replace(data, tokenizer=model.tokenizer)
    fields = ("tokenizer", "language", "task", "num_mel_bins", "frames", "max_label_tokens")
    if different := [field for field in fields if getattr(data, field) != getattr(model, field)]:
        values = ", ".join(f"{f} {getattr(data, f)} and {getattr(model, f)}" for f in different if f != "tokenizer")
        raise ConfigError(
            f"the data module was made for another model ({values or 'another tokenizer'}); pass it this module's "
            "processor: data.with_processor(module.processor)"
        )
