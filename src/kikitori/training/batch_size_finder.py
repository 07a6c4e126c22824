"""Micro-batches: how a step's clips are split to fit into memory, and `data.micro_batch_size=auto`.

With `auto`, the number of clips that a GPU computes at once is found by trying, per window, and kept for later runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from filelock import FileLock
from torch import Tensor

from kikitori.data.collate import Batch
from kikitori.data.datamodule import SpeechDataModule
from kikitori.model.processor import FRAMES_PER_POSITION
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.distributed import all_gather
from kikitori.runtime.errors import OutOfMemory, check_above_zero, is_out_of_memory
from kikitori.runtime.files import read_json, write_json
from kikitori.runtime.paths import cache_folder
from kikitori.runtime.rng import random_state_kept
from kikitori.training.loss import clip_losses

# Log-Mel frames that a CPU computes at once. Larger batches only add memory traffic: on two cores a step of
# whisper-base over 16 clips of 30 s takes 12.6 s and 8.8 GB at once, 10.9 s and 4.2 GB in four parts.
CPU_FRAMES = 12_000
# Of what a micro-batch takes, with weights, gradients and optimizer state, the share that must be free beside it,
# because memory becomes fragmented.
HEADROOM = 0.1
# Bytes that several processes leave free: for the buffers of NCCL, which are allocated later, and because they cannot
# repeat a step that does not fit.
DDP_MARGIN = 2 * 2**30

log = logging.getLogger(__name__)
T = TypeVar("T")


def check_sizes(micro_batch_sizes: Any) -> None:
    """Raises TypeError unless sizes are given by window, and ConfigError for one that is not above 0."""
    if micro_batch_sizes is None:
        return
    if not isinstance(micro_batch_sizes, Mapping):
        raise TypeError(
            f"micro_batch_sizes={micro_batch_sizes}: must be a mapping from the log-Mel frames of a window to clips, "
            f"such as {{100: {micro_batch_sizes}}}; for every window alike, pass the data module "
            f"micro_batch_size={micro_batch_sizes}"
        )
    check_above_zero("micro_batch_sizes", micro_batch_sizes, whole=True)


def find_micro_batch_sizes(
    trainer: pl.Trainer, whisper: Whisper, data: SpeechDataModule, averaged: bool = False
) -> dict[int, int]:
    """Clips that a process computes at once, by the log-Mel frames of their window.

    averaged: whether an average of the weights needs memory as well.
    A window without an entry takes all of a step's clips at once. Raises OutOfMemory if a single clip does not fit.
    """
    if isinstance(data.micro_batch_size, int):
        return dict.fromkeys(data.window_frames(), data.micro_batch_size)
    device = trainer.strategy.root_device
    if device.type == "cpu":
        return {frames: max(1, CPU_FRAMES // frames) for frames in data.window_frames()}
    if data.micro_batch_size is None or device.type != "cuda":
        return {}
    trainer.strategy.setup_environment()
    share = -(-data.global_batch_size // trainer.world_size)
    tokens = data.most_train_tokens
    whisper.model.to(device)
    torch.cuda.empty_cache()
    path = cache_folder() / "fitting.json"
    with FileLock(path.with_suffix(".lock")), random_state_kept():
        known = read_json(path) if path.exists() else {}
        suffix = " averaged" * averaged
        keys = {
            frames: key(whisper, trainer, frames, share, tokens) + suffix for frames in sorted(data.window_frames())
        }
        for frames, name in keys.items():
            if name not in known:
                known[name] = largest_that_fits(
                    share, make_memory_probe(whisper, trainer, frames, tokens, share, averaged), frames
                )
        write_json(path, known)
    torch.cuda.empty_cache()
    found = {frames: known[name] for frames, name in keys.items()}
    # All processes use the same sizes, so that they stay in step.
    agreed = {frames: min(each[frames] for each in all_gather(found)) for frames in found}
    if any(clips < share for clips in agreed.values()):
        sizes = {f"{frames / 100:g} s": clips for frames, clips in sorted(agreed.items())}
        log.info("micro-batch sizes, for %d clips per step: %s", share, sizes)
    return agreed


def largest_that_fits(share: int, fits: Callable[[int], bool], frames: int) -> int:
    """The largest of share, its half, its quarter, ... that fits into memory."""
    clips = share
    while not fits(clips):
        if clips == 1:
            raise OutOfMemory(
                f"one clip in a window of {frames / 100:g} s does not fit into the GPU's memory; use a smaller model, "
                "data.window=bucketed, model.gradient_checkpointing=true or trainer.precision=16-mixed"
            )
        clips = -(-clips // 2)
    return clips


def key(whisper: Whisper, trainer: pl.Trainer, frames: int, share: int, tokens: int) -> str:
    """Everything that a found size depends on, such as the sixteenths of the GPU's memory that are free."""
    free, total = torch.cuda.mem_get_info(trainer.strategy.root_device)
    config, gpu = whisper.model.config, torch.cuda.get_device_properties(trainer.strategy.root_device)
    trained = sum(p.numel() for p in whisper.model.parameters() if p.requires_grad)
    sizes = (whisper.num_parameters, trained, config.d_model, config.encoder_layers, config.decoder_layers)
    dropouts = (config.dropout, config.attention_dropout, config.activation_dropout)
    how = (
        trainer.precision,
        dropouts,
        trainer.world_size > 1,
        whisper.model.is_gradient_checkpointing,
        torch.__version__,
    )
    return f"{gpu.name} {total} {16 * free // total} {torch.__version__} {sizes} {how} {frames} {share} {tokens}"


def make_memory_probe(
    whisper: Whisper, trainer: pl.Trainer, frames: int, tokens: int, share: int, averaged: bool = False
) -> Callable[[int], bool]:
    """Returns a function that tests whether n of a step's clips fit at once, next to gradients and optimizer state.

    The test is what two steps do with a micro-batch of silence. AdamW's moments come between them, where they divide
    the memory that the first step freed: a micro-batch can fit into the first step and not into the second.
    """
    model, device = whisper.model, trainer.strategy.root_device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Two moments, and under DDP a second copy of the gradients; the gradients themselves stay for the second step.
    copies, margin = (3, DDP_MARGIN) if trainer.world_size > 1 else (2, 0)
    copies += averaged

    def fits(clips: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        kept: list[Tensor] = []
        try:
            features = torch.zeros(share, whisper.processor.num_mel_bins, frames, device=device)
            labels = torch.zeros(clips, tokens, dtype=torch.int64, device=device)
            for _ in range(2):
                with trainer.precision_plugin.forward_context():
                    loss = clip_losses(model, encode(model, features[:clips]), labels, labels.numel()).sum()
                loss.backward()
                if not kept:
                    kept += [torch.empty_like(weight) for weight in trained for _ in range(copies)]
                    free = round(HEADROOM * torch.cuda.max_memory_allocated()) + margin
                    kept.append(torch.empty(free, dtype=torch.uint8, device=device))
            del features, labels, loss
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            kept.clear()
            model.zero_grad(set_to_none=True)
        return True

    return fits


def micro_batches(
    batch: Batch, micro_batch_sizes: Mapping[int, int] | None = None, oom_split: int = 1
) -> Iterator[tuple[Tensor, slice]]:
    """Splits a batch by window and micro-batch size: yields features, or cached encoder states, and their rows."""
    start = 0
    for same in batch["encoder_states"] or batch["input_features"]:
        frames = same.shape[1] * FRAMES_PER_POSITION if batch["encoder_states"] else same.shape[2]
        clips = min((micro_batch_sizes or {}).get(frames, len(same)), len(same))
        for part in same.split(-(-clips // oom_split)):
            yield part, slice(start, start + len(part))
            start += len(part)


def split_on_oom(compute: Callable[[Tensor, slice], T], features: Tensor, rows: slice) -> list[T]:
    """The results of `compute` for a micro-batch, or for its halves if the whole does not fit into memory."""
    try:
        return [compute(features, rows)]
    except RuntimeError as error:
        if len(features) == 1 or not is_out_of_memory(error):
            raise
    # Outside the exception handler, whose traceback keeps the tensors that did not fit.
    log.warning("%d clips at once do not fit into memory; computing halves (see data.eval_batch_size)", len(features))
    half, middle = len(features) // 2, rows.start + len(features) // 2
    first = split_on_oom(compute, features[:half], slice(rows.start, middle))
    return first + split_on_oom(compute, features[half:], slice(middle, rows.stop))
