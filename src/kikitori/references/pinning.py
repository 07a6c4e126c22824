"""Replaces a reference by one that never changes, and finds the folder of a model that it refers to."""

from pathlib import Path

from kikitori.references.artifacts import artifact_folder, pin_artifact
from kikitori.references.hub import adapter_folder, pin_revision
from kikitori.references.names import Artifact, parse_reference
from kikitori.runtime.files import expanded


def pin(name: str) -> str:
    """Returns a model's name with what it refers to now: hub: with a commit, wandb: with a version, downloaded.

    Any other name is returned as it is. Raises ModelError if there is nothing of this name.
    """
    reference = parse_reference(name)
    if reference is None:
        return name
    return str(pin_artifact(reference) if isinstance(reference, Artifact) else pin_revision(reference))


def local_path(name: str) -> Path:
    """Returns the path that a model's name stands for: of a pinned artifact or adapter its folder in the cache."""
    reference = parse_reference(name)
    if reference is None:
        return expanded(name)
    return artifact_folder(reference) if isinstance(reference, Artifact) else adapter_folder(reference)
