"""`kikitori export`: a model for other engines, each of which reads it back."""

import hydra
from omegaconf import DictConfig

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Exports a model."""
    from kikitori.pipelines import export

    run_pipeline(export.export, cfg)
