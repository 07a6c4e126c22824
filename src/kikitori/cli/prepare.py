"""kikitori prepare: decode a corpus into the store and tell what would be left out."""

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kikitori.config.hydra_guard import guard_hydra
from kikitori.runtime.paths import CONF, run_folder

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Build the store and print what is in it."""
    from kikitori.pipelines import prepare

    folder = run_folder()
    data = prepare.prepare(cfg, folder)
    facts = data.summary()
    table = Table("split", "clips", "hours", "stored in", title=facts["corpus"], title_justify="left")
    for split, row in facts["splits"].items():
        path = data.prepared.audio_caches[split].path
        table.add_row(
            split, str(row["clips"]), f"{row['seconds'] / 3600:.2f}", f"{path.stat().st_size / 2**20:.1f} MiB"
        )
    console = Console()
    console.print(table)
    for reason, count in facts["rejects"].items():
        console.print(f"left out: {count} {reason}")
    console.print(
        "Clips longer than a model's window, or with too many tokens for it, are found by train and evaluate."
    )
    if facts["rejects"]:
        console.print(f"Each of these is in {folder / 'rejects.jsonl'}", soft_wrap=True)
