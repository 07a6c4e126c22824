"""`kikitori evaluate`: scores a checkpoint or a stock model on any corpus."""

import hydra
from omegaconf import DictConfig

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one evaluation."""
    from kikitori.pipelines import evaluate

    run_pipeline(evaluate.evaluate, cfg)
