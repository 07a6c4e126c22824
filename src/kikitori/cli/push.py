"""`kikitori push`: uploads the model of a run to the Hugging Face Hub.

Modules that take seconds to import are imported where they are used, so that --help is answered fast.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kikitori import __version__
from kikitori.runtime.text import printable_line


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="kikitori push",
        description="Upload the model of a completed run with its card to the Hugging Face Hub, in one commit. "
        "Speech, transcripts, speakers and paths of this machine are never uploaded.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a completed run")
    parser.add_argument("name", metavar="NAME", help="on the Hub: owner/model, or model for one of your own")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument("--pull-request", action="store_true", help="propose the change instead of making it")
    parser.add_argument("--adapter", action="store_true", help="upload the adapter alone, not the model with it merged")
    parser.add_argument("--license", metavar="ID", help="of the model, as the Hub names it, such as apache-2.0")
    parser.add_argument("--data-license", metavar="TEXT", help="of the speech that it was trained on, such as CC0-1.0")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, without using the network")
    return parser.parse_args()


def main() -> None:
    """Prints what is uploaded, and where it is then."""
    arguments = parse()
    from kikitori.publishing.card import card
    from kikitori.publishing.hub import check_name, full_name, push
    from kikitori.publishing.run import folder_to_push
    from kikitori.publishing.selection import CARD, select

    check_name(arguments.name)
    folder, results = folder_to_push(arguments.run, arguments.adapter)
    chosen = select(folder)
    name = arguments.name if arguments.dry_run else full_name(arguments.name)
    text, metadata = card(folder, results, name, arguments.license, arguments.data_license)
    files = {CARD: text.encode(), **chosen.files}
    show_files(files, chosen.left_out, chosen.notes)
    if "license" not in metadata:
        print("no licence is stated; --license states one, such as apache-2.0, that of OpenAI's models")
    if "base_model" not in metadata:
        print(printable_line(f"no base is named, since it is none of the Hub; {folder / CARD} may state base_model"))
    if arguments.dry_run:
        show_metadata(metadata)
        print(f"nothing was uploaded (--dry-run); {name} would be {'public' if arguments.public else 'private'} if new")
        return
    message = f"Model fine-tuned with kikitori {__version__}"
    pushed = push(files, name, message, arguments.public, arguments.pull_request)
    for line in [*pushed.notes, f"{len(files)} files are there with the sizes and checksums that were sent"]:
        print(printable_line(line))
    print(printable_line(f"{'pull request' if arguments.pull_request else 'commit'}: {pushed.url}"))
    print(printable_line(f"to load it: hub:{name}@{pushed.commit}"))


def show_files(files: Mapping[str, Path | bytes], left_out: list[str], notes: list[str]) -> None:
    """Prints the files with their sizes, and what is left out."""
    from kikitori.publishing.selection import size_of
    from kikitori.runs.summary import size

    for name, content in files.items():
        print(printable_line(f"{size(size_of(content)):>8}  {name}"))
    print(f"{size(sum(map(size_of, files.values()))):>8}  in {len(files)} files")
    for line in [*notes, *([f"left out: {', '.join(left_out)}"] if left_out else [])]:
        print(printable_line(line))


def show_metadata(metadata: Mapping[str, Any]) -> None:
    """Prints every line of the card's metadata."""
    from kikitori.runs.model_card import front_matter

    for line in front_matter(metadata).splitlines():
        print(printable_line(line))
