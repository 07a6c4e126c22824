"""The LightningModule: holds a Whisper, wires loss, generation and scores to the Trainer."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from kikitori.data.collate import IGNORE_INDEX, Batch
from kikitori.inference.generate import generate_text
from kikitori.metrics.error_rates import edits_and_lengths, score_clips
from kikitori.model.processor import FRAMES_PER_POSITION
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.errors import TrainingError
from kikitori.training import optimizer
from kikitori.training.loss import clip_losses

log = logging.getLogger(__name__)
T = TypeVar("T")

# How far the parts of a step are halved of themselves; what fits less should be told to a person.
MAX_OOM_SPLIT = 4


class WhisperModule(pl.LightningModule):
    """Fine-tunes a Whisper.

    make_optimizer: `kikitori.adamw` with all arguments but model and max_steps; None where nothing is trained.
    clip_norm: what the gradient's norm is clipped to. micro_batch_sizes: how many clips, by the log-Mel frames of their window,
    go through the model together; where it is silent, all of a step's. Gradients and loss do not depend on it.
    The checkpoint's hyper-parameters are plain values, so that it loads with weights_only=True.
    """

    def __init__(
        self,
        whisper: Whisper,
        make_optimizer: Callable[..., Any] | None = None,
        clip_norm: float | None = None,
        micro_batch_sizes: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        # A step's clips go forward and back in parts, as windows and memory ask for: Lightning knows one part only.
        self.automatic_optimization = False
        self.whisper = whisper
        self.model = whisper.model
        self.processor = whisper.processor
        self.make_optimizer = make_optimizer
        self.clip_norm = clip_norm
        self.micro_batch_sizes = micro_batch_sizes or {}
        # What the parts of a step are divided by, after those that did not fit.
        self.oom_split = 1
        self.save_hyperparameters({"recipe": whisper.recipe}, logger=False)
        self._totals: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the optimizer. Returns the mean loss over the global batch's tokens: see `kikitori.sampler`."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimizer.zero_grad()
        total = self._forward_and_back(batch)
        while total is None:
            # Out of the handler, whose traceback holds what did not fit.
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            total = self._forward_and_back(batch)
        optimizer.step()
        scheduler.step()
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch["clips"]), sync_dist=True)
        return total

    def _forward_and_back(self, batch: Batch) -> Tensor | None:
        """The gradients of a step, and its loss; None where its parts did not fit the memory and are halved now."""
        losses, weights = [], batch["weights"]
        assert weights is not None
        try:
            for features, rows in micro_batches(batch, self.micro_batch_sizes, self.oom_split):
                last = rows.stop == len(batch["labels"])
                with nullcontext() if last else self.no_sync():
                    losses_of = clip_losses(self.model, self.states(batch, features), batch["labels"][rows])
                    loss = (losses_of * weights[rows]).sum()
                    self.manual_backward(loss)
                losses.append(loss.detach())
        except torch.OutOfMemoryError as error:
            clips = len(features)
            # Processes that average their gradients cannot take a step again without the others.
            if clips == 1 or self.oom_split == MAX_OOM_SPLIT or self.trainer.world_size > 1:
                raise TrainingError(
                    f"step {self.trainer.global_step + 1}: {clips} clips of {features.shape[-1]} frames at once do not "
                    f"fit the memory; pass data.micro_batch_size={max(1, clips // 2)}, data.window=bucketed, "
                    "model.gradient_checkpointing=true, or take a smaller model"
                ) from error
            self.oom_split *= 2
            told = "step %d: %d clips at once do not fit the memory; from here half as many, in twice as many parts"
            log.warning(told + " (see data.micro_batch_size); a step's clips stay", self.trainer.global_step + 1, clips)
            return None
        return torch.stack(losses).sum()

    def no_sync(self) -> AbstractContextManager[Any]:
        """Processes average their gradients once a step, in its last part."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def states(self, batch: Batch, part: Tensor) -> Tensor:
        """What the encoder says of a part of the batch, where it is not known already."""
        return part if batch["encoder_states"] else encode(self.model, part)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Here, where Lightning has undone the loss's scaling.
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.grad is not None), self.clip_norm)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count, rather than average: a rate is all edits over all length, whatever the batches."""
        tokens = (batch["labels"] != IGNORE_INDEX).sum()

        def assess(features: Tensor, rows: slice) -> tuple[Tensor, list[str]]:
            # One pass of the encoder for both.
            states = self.states(batch, features)
            loss = clip_losses(self.model, states, batch["labels"][rows]).sum()
            return loss, generate_text(self.whisper, states, batch["seconds"][rows])

        losses, texts = zip(
            *(found for part in micro_batches(batch) for found in split_on_oom(assess, *part)), strict=True
        )
        loss = torch.stack(losses).sum()
        scores = score_clips(batch["texts"], list(chain.from_iterable(texts)), self.processor.language)
        cer, wer = (edits_and_lengths(scores, rate).sum(axis=0) for rate in ("cer", "wer"))
        counts = torch.tensor([*cer, *wer], dtype=torch.float64)
        self._totals.append(torch.cat([torch.stack([loss, tokens]).cpu().double(), counts]))

    def on_validation_epoch_end(self) -> None:
        totals = torch.stack(self._totals).sum(dim=0)
        self._totals.clear()
        # Double precision is exact for counts, but not known to every accelerator.
        summed = self.trainer.strategy.reduce(totals.to(self.device, torch.float32), reduce_op="sum")
        loss, tokens, cer_edits, cer_length, wer_edits, wer_length = summed.tolist()
        rates = {"val/cer": cer_edits / max(cer_length, 1), "val/wer": wer_edits / max(wer_length, 1)}
        # Equal in all processes already; told to synchronise, Lightning knows it, too.
        self.log_dict({"val/loss": loss / max(tokens, 1), **rates}, prog_bar=True, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[str, str, str]]:
        """(clip, reference, hypothesis) of each row."""

        def hear(features: Tensor, rows: slice) -> list[str]:
            return generate_text(self.whisper, self.states(batch, features), batch["seconds"][rows])

        texts = [text for part in micro_batches(batch) for some in split_on_oom(hear, *part) for text in some]
        return list(zip(batch["clips"], batch["texts"], texts, strict=True))

    def on_train_start(self) -> None:
        # A checkpoint brings the settings of its optimizer along; those of the configuration hold, where they differ.
        schedulers, optimizers = self.trainer.lr_scheduler_configs, self.trainer.optimizers
        optimizer.reconfigure(optimizers[0], schedulers[0].scheduler, self._configured)

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer is not None
        optimizer, scheduler = self.make_optimizer(self.model, self.trainer.max_steps)
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def micro_batches(
    batch: Batch, micro_batch_sizes: Mapping[int, int] | None = None, oom_split: int = 1
) -> Iterator[tuple[Tensor, slice]]:
    """A batch in parts that can go through the model together: what is known of clips of a window, and their rows."""
    start = 0
    for same in batch["encoder_states"] or batch["input_features"]:
        frames = same.shape[1] * FRAMES_PER_POSITION if batch["encoder_states"] else same.shape[2]
        clips = min((micro_batch_sizes or {}).get(frames, len(same)), len(same))
        for part in same.split(-(-clips // oom_split)):
            yield part, slice(start, start + len(part))
            start += len(part)


def split_on_oom(compute: Callable[[Tensor, slice], T], features: Tensor, rows: slice) -> list[T]:
    """What `compute` makes of a part, or of its halves where the whole does not fit the memory."""
    try:
        return [compute(features, rows)]
    except torch.OutOfMemoryError:
        if len(features) == 1:
            raise
    # Out of the handler, whose traceback holds what did not fit.
    log.warning("%d clips at once do not fit the memory: in halves (see data.eval_batch_size)", len(features))
    half, middle = len(features) // 2, rows.start + len(features) // 2
    first = split_on_oom(compute, features[:half], slice(rows.start, middle))
    return first + split_on_oom(compute, features[half:], slice(middle, rows.stop))
