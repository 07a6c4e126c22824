"""The LightningModule: holds a Whisper, wires loss, generation and scores to the Trainer."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kikitori.collate import IGNORED, Batch
from kikitori.decode import generate
from kikitori.metrics import edits_and_lengths, score_clips
from kikitori.whisper import Whisper


class WhisperModule(pl.LightningModule):
    """Fine-tunes a Whisper.

    make_optimizer: `kikitori.optim.build` with all arguments but model and max_steps; None where nothing is trained.
    The checkpoint's hyper-parameters are plain values, so that it loads with weights_only=True.
    """

    def __init__(self, whisper: Whisper, make_optimizer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.model = whisper.model
        self.front_end = whisper.front_end
        self.make_optimizer = make_optimizer
        self.save_hyperparameters({"recipe": whisper.recipe}, logger=False)
        self._totals: list[Tensor] = []

    def token_losses(self, batch: Batch) -> Tensor:
        """(batch,): the sum of the cross-entropies of each clip's supervised tokens."""
        logits = self.model(input_features=batch["input_features"], labels=batch["labels"], use_cache=False).logits
        losses = cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="none")
        return losses.view(len(batch["labels"]), -1).sum(dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The share of the mean over the global batch's tokens that falls to this batch: see `kikitori.sampler`."""
        assert batch["weights"] is not None
        loss = (self.token_losses(batch) * batch["weights"]).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["clips"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count, rather than average: a rate is all edits over all length, whatever the batches."""
        tokens = (batch["labels"] != IGNORED).sum()
        loss = self.token_losses(batch).sum()
        scores = score_clips(batch["texts"], self.read(batch), self.front_end.language)
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
        return list(zip(batch["clips"], batch["texts"], self.read(batch), strict=True))

    def read(self, batch: Batch) -> list[str]:
        return generate(self.model, self.front_end, batch["input_features"])

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer is not None
        optimizer, scheduler = self.make_optimizer(self.model, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
