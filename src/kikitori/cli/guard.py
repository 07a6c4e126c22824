"""`kikitori guard`: a tuned model next to its base on what its corpus does not show."""

import hydra
from omegaconf import DictConfig

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="guard", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compares two models."""
    from kikitori.pipelines import guard

    run_pipeline(guard.guard, cfg)
