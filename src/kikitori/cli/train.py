"""kikitori train: fine-tune a Whisper. `kikitori train --help` lists what can be chosen."""

import hydra
from omegaconf import DictConfig

from kikitori.config.hydra_guard import guard_hydra
from kikitori.runs.results import best_cer
from kikitori.runtime.paths import CONF, run_folder

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a multirun; what a search minimises is returned."""
    from kikitori.pipelines import train
    from kikitori.runtime import distributed

    # A job that Slurm put back into its queue goes on in its folder.
    if distributed.restarted():
        cfg.resume = "auto"
    return best_cer(train.train(cfg, run_folder()))
