"""kikitori compare: a table, or a page, of what runs and sweeps came to. Needs no account and no network."""

import argparse
import shlex
import sys
from pathlib import Path

from kikitori.compare import formats
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.runtime.errors import DataError


def main() -> None:
    """Print the table; with --report, write the page too."""
    parser = argparse.ArgumentParser(prog="kikitori compare", description=__doc__)
    parser.add_argument("folders", nargs="+", help="run folders, sweep folders, or quoted globs of them")
    parser.add_argument("--format", choices=("table", "md", "csv", "json"), default="table", help="default: table")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write one self-contained page")
    arguments = parser.parse_args()
    tables, failures = build_leaderboards(arguments.folders)
    if not tables:
        told = "".join(f"\n  {formats.failure(run)}" for run in failures)
        raise DataError(f"no run is completed, so there is nothing to compare:{told}")
    if arguments.format == "table":
        formats.print_tables(tables, failures)
    else:
        write = {"md": formats.markdown, "csv": formats.as_csv, "json": formats.as_json}[arguments.format]
        print(write(tables, failures).rstrip("\n"))
    if arguments.report:
        # What the page needs takes longer to import than a table to print.
        from kikitori.compare.page import write_page

        write_page(arguments.report, tables, failures, shlex.join(["kikitori", "compare", *sys.argv[1:]]))
        print(f"The page is {arguments.report}", file=sys.stderr)
