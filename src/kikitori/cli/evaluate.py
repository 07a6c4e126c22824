"""`kikitori evaluate`: scores a checkpoint or a stock model on any corpus."""

import hydra
from omegaconf import DictConfig

from kikitori.config.hydra_guard import guard_hydra
from kikitori.runtime.paths import CONF, run_folder

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one evaluation."""
    from kikitori.pipelines import evaluate

    evaluate.evaluate(cfg, run_folder())
