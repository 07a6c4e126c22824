"""kikitori train: fine-tune a Whisper. `kikitori train --help` lists what can be chosen."""

import hydra
from omegaconf import DictConfig

from kikitori.guard import guard_hydra
from kikitori.paths import CONF, run_folder
from kikitori.sweep import best_cer

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a multirun; what a search minimises is returned."""
    from kikitori import experiment, ranks

    # A job that Slurm put back into its queue goes on in its folder.
    if ranks.restarted():
        cfg.resume = "auto"
    return best_cer(experiment.train(cfg, run_folder()))
