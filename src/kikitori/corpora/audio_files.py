"""Finds the audio files that the rows of a corpus name. The rows may be malformed or hostile."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from kikitori.corpora.types import PART, Clip, Reject, Split
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import expanded, is_utf8


class AudioFiles:
    """The files below the folder of a corpus, and below other folders that the user allows.

    root: the folder that relative paths start from. roots: the other folders (`data.roots`). within: the folder that
    root lies in, if it comes from the corpus.
    Raises DataError if one of these does not exist, or root is a link that leads out of `within` and its roots.
    """

    def __init__(self, root: Path, roots: Sequence[str] = (), within: Path | None = None) -> None:
        self.root = root.absolute()
        real = os.path.realpath(root)
        if not is_inside(root, [within or root, *roots]):
            raise DataError(f"{root} is a link to {real}; to read it, add data.roots=[{real}]")
        # By their real paths: how the names of clips begin whose absolute paths lead there.
        self._allowed = {real: ""}
        for i, other in enumerate(roots):
            folder = os.path.realpath(expanded(other))
            if not os.path.isdir(folder):
                raise DataError(f"data.roots: {other} is not a folder")
            self._allowed.setdefault(folder, f"roots[{i}]/")
        self._names: dict[Path, Mapping[str, str]] = {}

    def clip(
        self,
        path: str,
        split: Split,
        text: str,
        speaker: str | None,
        part: tuple[float, float | None] | None = None,
    ) -> Clip | Reject:
        """Makes a clip of a file, or a reject if the file is elsewhere or something is not UTF-8.

        A missing file in an allowed folder is not a reject yet. Decoding finds that out.
        """
        if not is_utf8(path) or not is_utf8(text):
            return Reject(ascii(path), split, "not UTF-8", ascii(text))
        if not path or "\0" in path:
            return Reject(path, split, "malformed row", "a NUL byte in the path" if path else "no path")
        file = self._find(path)
        # realpath, because Path.resolve raises an error for links that form a loop.
        real = Path(os.path.realpath(file))
        folder = next((folder for folder in self._allowed if real.is_relative_to(folder)), None)
        if folder is None and not real.exists():
            return Reject(path, split, "missing", "missing")
        if folder is None:
            return Reject(path, split, "outside the corpus", f"lies outside of {self.root.name}/")
        name = self._allowed[folder] + os.path.relpath(real, folder) if os.path.isabs(path) else path
        identity = _identity(file)
        if part is None:
            return Clip(name, split, text.strip(), identity, file, speaker or None)
        start, end = part
        bounds = f"{PART}{start:.10g}" + ("" if end is None else f",{end:.10g}")
        seconds = None if end is None else end - start
        return Clip(name + bounds, split, text.strip(), identity + bounds, file, speaker or None, seconds, part)

    def _find(self, path: str) -> Path:
        """The file of a path, or else one whose path differs in spaces around it, backslashes or its Unicode form."""
        for form in (path, path.strip(), path.strip().replace("\\", "/")):
            file = self.root / form
            if os.path.lexists(file):
                return file
            if (other := self._in_another_form(file)) is not None:
                return other
        return self.root / path

    def _in_another_form(self, file: Path) -> Path | None:
        """The file whose path differs in its Unicode form only: macOS writes が as two code points in names (NFD)."""
        for folder in (self.root, *map(Path, self._allowed)):
            above, below = file.parts[: len(folder.parts)], file.parts[len(folder.parts) :]
            if ".." not in below and [*map(_nfc, above)] == [*map(_nfc, folder.parts)]:
                return self._descend(folder, below)
        return None

    def _descend(self, place: Path, names: Sequence[str]) -> Path | None:
        for name in names:
            if not os.path.lexists(place / name):
                other = self._names_by_form(place).get(_nfc(name))
                if other is None:
                    return None
                name = other
            place /= name
        return place

    def _names_by_form(self, folder: Path) -> Mapping[str, str]:
        """The names in a folder by their NFC form, without those of which two have the same."""
        if folder not in self._names:
            try:
                names = os.listdir(folder)
            except OSError:
                names = []
            count = Counter(map(_nfc, names))
            self._names[folder] = {_nfc(name): name for name in names if count[_nfc(name)] == 1}
        return self._names[folder]


def is_inside(path: Path | str, folders: Iterable[Path | str]) -> bool:
    """Whether a path leads into one of the folders, through whatever links."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(expanded(folder))) for folder in folders)


def _nfc(name: str) -> str:
    return normalize("NFC", name)


def _identity(file: Path) -> str:
    """A file's size and time.

    An unreadable file has an identity of its own: permission may be granted later without a change of size or time.
    """
    try:
        stat = file.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}" if os.access(file, os.R_OK) else "unreadable"
