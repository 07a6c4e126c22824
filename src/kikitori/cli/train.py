"""`kikitori train`: fine-tunes a Whisper."""

import hydra
from omegaconf import DictConfig

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runs.results import best_cer
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Runs one training, or one trial of a sweep. Returns the validation CER, which a search minimises."""
    from kikitori.pipelines import train
    from kikitori.runtime import distributed

    # A job that Slurm has requeued resumes in its folder.
    if distributed.restarted():
        cfg.resume = "auto"
    return best_cer(run_pipeline(train.train, cfg))
