"""A few of each row of docs/reliability.md: what `make chaos` counts by the hundred."""

from pathlib import Path

import harness
import pytest
from run import BEGIN, COUNTS, END, TABLE, rows, table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

# Left to `make chaos`: they wait, or start several processes that import everything, or have faster tests of their own
# (test_checkpoints.py, test_saving.py, test_store.py).
LONG = {
    "forked_like_plain",
    "clock_set_back",
    "folder_moved",
    "network_gone",
    "folder_locked",
    "loss_not_finite",
    "process_killed",
    "process_stopped",
    "process_raises",
    "process_told_to_stop",
    "tracker_gone",
    "tracker_gone_pairs",
}


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory) -> None:
    harness.begin(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize(
    "name",
    sorted(name for name, row in rows().items() if name not in LONG and row.__module__ not in ("attacks", "media")),
)
def test_every_run_keeps_its_promise(name: str, tmp_path: Path) -> None:
    row = rows()[name](COUNTS.get(name, (1, 20))[0], 1, tmp_path)
    assert row["good"] == row["runs"], row["notes"]


def test_a_promise_that_was_not_kept_is_counted_and_named(tmp_path: Path) -> None:
    def one(number: int, rng: object, place: Path) -> None:
        if number == 1:
            raise harness.Miss("it ended with 1")

    row = harness.rows_of("a fault", 3, 0, tmp_path, one)
    assert (row["good"], row["runs"], row["notes"]) == (2, 3, "missed: it ended with 1")
    assert "2 of 3 **missed**" in table([{**row, "seconds": 60.0}])


def test_the_page_has_a_place_for_the_table() -> None:
    page = TABLE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
