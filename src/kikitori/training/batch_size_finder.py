"""`data.micro_batch_size=auto`: how many clips of each window a GPU computes at once, found by trying and kept for later runs."""

import logging
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from filelock import FileLock

from kikitori.data.datamodule import SpeechDataModule
from kikitori.model.whisper import encode
from kikitori.runtime.distributed import all_gather
from kikitori.runtime.errors import TrainingError
from kikitori.runtime.files import read_json, write_json
from kikitori.runtime.paths import cache_folder
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.loss import clip_losses

# Log-Mel frames that a CPU computes at once. Of more it has nothing but the memory to fetch: on two cores a step of
# whisper-base over 16 clips of 30 s takes 12.6 s and 8.8 GB at once, 10.9 s and 4.2 GB in four parts.
CPU_FRAMES = 12_000
# Of what is kept, for what fragments.
HEADROOM = 1.1

log = logging.getLogger(__name__)


def find_micro_batch_sizes(trainer: pl.Trainer, module: WhisperModule, data: SpeechDataModule) -> dict[int, int]:
    """Clips that a process computes at a time, by the log-Mel frames of their window; silent where all of a step's.

    Raises TrainingError where not one clip fits.
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
    tokens = max(data.train_tokens)
    module.to(device)
    path = cache_folder() / "fitting.json"
    with FileLock(path.with_suffix(".lock")):
        known = read_json(path) if path.exists() else {}
        keys = {frames: key(module, trainer, frames, share, tokens) for frames in sorted(data.window_frames())}
        for frames, name in keys.items():
            if name not in known:
                known[name] = largest_that_fits(share, make_memory_probe(module, trainer, frames, tokens), frames)
        write_json(path, known)
    found = {frames: known[name] for frames, name in keys.items()}
    # The same in all processes, so that they stay together.
    agreed = {frames: min(each[frames] for each in all_gather(found)) for frames in found}
    if any(clips < share for clips in agreed.values()):
        log.info("clips at once, of %d a step: %s", share, {f"{f / 100:g} s": n for f, n in sorted(agreed.items())})
    return agreed


def largest_that_fits(share: int, fits: Callable[[int], bool], frames: int) -> int:
    """The largest of share, its half, its quarter, ... that fits."""
    clips = share
    while not fits(clips):
        if clips == 1:
            raise TrainingError(
                f"one clip in a window of {frames / 100:g} s does not fit the GPU's memory; take a smaller model, "
                "data.window=bucketed, model.gradient_checkpointing=true or trainer.precision=16-mixed"
            )
        clips = -(-clips // 2)
    return clips


def key(module: WhisperModule, trainer: pl.Trainer, frames: int, share: int, tokens: int) -> str:
    """What a finding holds for."""
    config, gpu = module.model.config, torch.cuda.get_device_properties(trainer.strategy.root_device)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    sizes = (module.model.num_parameters(), trained, config.d_model, config.encoder_layers, config.decoder_layers)
    dropouts = (config.dropout, config.attention_dropout, config.activation_dropout)
    how = (
        trainer.precision,
        dropouts,
        trainer.world_size > 1,
        module.model.is_gradient_checkpointing,
        torch.__version__,
    )
    return f"{gpu.name} {gpu.total_memory} {torch.__version__} {sizes} {how} {frames} {share} {tokens}"


def make_memory_probe(module: WhisperModule, trainer: pl.Trainer, frames: int, tokens: int) -> Callable[[int], bool]:
    """A function that tells whether so many clips go forward and back beside all that a step keeps."""
    model, device = module.model, trainer.strategy.root_device

    def fits(clips: int) -> bool:
        torch.cuda.empty_cache()
        try:
            # AdamW's two moments, the gradients of the parts before, and under DDP a second copy of them.
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            copies = 4 if trainer.world_size > 1 else 3
            kept = torch.empty(round(HEADROOM * copies * trained), device=device)
            features = torch.zeros(clips, module.processor.num_mel_bins, frames, device=device)
            labels = torch.zeros(clips, tokens, dtype=torch.int64, device=device)
            with trainer.precision_plugin.forward_context():
                loss = clip_losses(model, encode(model, features), labels).sum()
            loss.backward()
            del kept, features, labels, loss
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    return fits
