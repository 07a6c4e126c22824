"""`kikitori compare`: ranks runs and sweeps in a table or a page. Needs no account and no network."""

import argparse
import shlex
import sys
from pathlib import Path

from kikitori.compare import formats
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.runtime.errors import DataError


def main() -> None:
    """Prints the table; with --report, also writes the page."""
    description = "Rank runs and sweeps in a table or a page, with confidence intervals."
    parser = argparse.ArgumentParser(prog="kikitori compare", description=description)
    parser.add_argument("folders", nargs="+", help="run folders, sweep folders, or quoted globs of them")
    parser.add_argument("--format", choices=("table", "md", "csv", "json"), default="table", help="default: table")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write one self-contained page")
    arguments = parser.parse_args()
    tables, failures = build_leaderboards(arguments.folders)
    if not tables:
        reasons = "".join(f"\n  {formats.failure(run)}" for run in failures)
        raise DataError(f"no run is completed, so there is nothing to compare:{reasons}")
    if arguments.format == "table":
        formats.print_tables(tables, failures)
    else:
        write = {"md": formats.markdown, "csv": formats.as_csv, "json": formats.as_json}[arguments.format]
        print(write(tables, failures).rstrip("\n"))
    if arguments.report:
        # Its imports take longer than printing a table.
        from kikitori.compare.page import write_page

        write_page(arguments.report, tables, failures, shlex.join(["kikitori", "compare", *sys.argv[1:]]))
        print(f"The page is {arguments.report}", file=sys.stderr)
