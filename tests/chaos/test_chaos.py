"""A few runs of each row of docs/reliability.md, of which `make chaos` counts hundreds."""

from pathlib import Path

import harness
import pytest
from run import BEGIN, COUNTS, END, TABLE, rows, table

pytestmark = pytest.mark.slow

# Only in `make chaos`: they wait, start several processes that import everything, or are covered by faster tests
# (training/test_interrupted_training.py, training/test_checkpoint_files.py, data/test_audio_cache.py).
LONG = {
    "damaged_checkpoint",
    "killed_at_any_moment",
    "killed_in_a_save",
    "forked_like_plain",
    "clock_set_back",
    "disk_full",
    "folder_moved",
    "negative_controls",
    "network_gone",
    "folder_locked",
    "loader_killed",
    "loss_not_finite",
    "process_killed",
    "process_hangs",
    "process_raises",
    "process_terminated",
    "stop_signals",
    "tracker_gone",
    "tracker_gone_pairs",
}
# Their rows are tests of their own.
MODULES_ELSEWHERE = ("attacks", "media", "seeds")


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory) -> None:
    harness.set_up(tmp_path_factory.mktemp("chaos"))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(name for name, row in rows().items() if row.__module__ == "seeds"))
def test_one_seed_gives_one_model(name: str, tmp_path: Path) -> None:
    row = rows()[name](COUNTS.get(name, (4, 20))[0], 1, tmp_path)
    assert row["good"] == row["runs"], row["notes"]


@pytest.mark.parametrize(
    "name",
    sorted(name for name, row in rows().items() if name not in LONG and row.__module__ not in MODULES_ELSEWHERE),
)
def test_every_run_recovers(name: str, tmp_path: Path) -> None:
    row = rows()[name](COUNTS.get(name, (1, 20))[0], 1, tmp_path)
    assert row["good"] == row["runs"], row["notes"]


def test_a_run_that_does_not_recover_is_counted_and_named(tmp_path: Path) -> None:
    def one(number: int, rng: object, place: Path) -> None:
        if number == 1:
            raise harness.Miss("it ended with 1")

    row = harness.rows_of("a fault", 3, 0, tmp_path, one)
    assert (row["good"], row["runs"], row["notes"]) == (2, 3, "missed: it ended with 1")
    assert "2 of 3 **missed**" in table([{**row, "seconds": 60.0}])


def test_the_page_has_one_pair_of_markers_for_the_table() -> None:
    page = TABLE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
