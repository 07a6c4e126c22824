"""`kikitori average`: the mean of tuned models, and its mixtures with their base."""

import hydra
from omegaconf import DictConfig

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="average", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Averages models."""
    from kikitori.pipelines import average

    run_pipeline(average.average, cfg)
