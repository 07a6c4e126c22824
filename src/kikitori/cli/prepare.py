"""`kikitori prepare`: decodes a corpus into the audio cache and lists the clips that would be rejected."""

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kikitori.cli.hydra_app import guard_hydra, run_pipeline
from kikitori.runtime.paths import CONF

guard_hydra()


@hydra.main(config_path=str(CONF), config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Decodes the corpus and prints a summary."""
    run_pipeline(prepare_and_show, cfg)


def prepare_and_show(cfg: DictConfig, folder: Path) -> None:
    """Decodes the corpus and prints a summary."""
    from kikitori.corpora.types import SPLITS
    from kikitori.data.filters import REMEDIES
    from kikitori.pipelines import prepare
    from kikitori.runtime.console import duration

    data = prepare.prepare(cfg, folder)
    facts = data.summary()
    table = Table("split", "clips", "duration", "cache", title=facts["corpus"], title_justify="left")
    for split, row in facts["splits"].items():
        size = data.prepared.audio_caches[split].path.stat().st_size
        table.add_row(split, str(row["clips"]), duration(row["seconds"]), f"{size / 2**20:.1f} MiB")
    console = Console()
    console.print(table)
    for reason, count in facts["rejects"].items():
        remedy = f": {REMEDIES[reason]}" if reason in REMEDIES else ""
        console.print(f"left out: {count} {reason}{remedy}", soft_wrap=True, markup=False)
    if facts["rejects"]:
        console.print(f"{folder / 'rejects.jsonl'} lists each of them", soft_wrap=True)
    absent = [split for split in SPLITS if split not in facts["splits"]]
    reasons = {split: data.prepared.corpus.absent.get(split, "the corpus lists no clip of it") for split in absent}
    for reason in dict.fromkeys(reasons.values()):
        splits = " and no ".join(split for split in absent if reasons[split] == reason)
        held_out = "" if "train" in absent else ". data.held_out=0.1 takes it from the training clips"
        console.print(
            f"no {splits} split, which kikitori train needs: {reason}{held_out}", soft_wrap=True, markup=False
        )
    console.print("train and evaluate also reject clips that have more seconds or tokens than their model takes.")
