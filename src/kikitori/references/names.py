"""What a model's name refers to: a model on the Hub, an artifact of Weights & Biases, or neither of these."""

import re
from typing import NamedTuple
from urllib.parse import quote

from kikitori.runtime.errors import ModelError

# A name on the Hub, with an owner or, for a few old ones, without.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# A commit, tag or branch; that of a pull request is refs/pr/1.
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights & Biases allows more for projects, but no slash, which makes each part the name of one folder.
PART = re.compile(r"\w[\w .-]*")
# Bytes of a folder's name.
MAX_PART = 255
VERSION = re.compile(r"v\d+")
SCHEMES = ("hub:", "wandb:")


class HubModel(NamedTuple):
    """A model on the Hugging Face Hub. revision: a commit, tag or branch; None for the main branch."""

    name: str
    revision: str | None = None

    @property
    def is_immutable(self) -> bool:
        """Whether the revision is a commit, which cannot change."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def shown(self) -> str:
        """The name in tables."""
        revision = self.revision and (self.revision[:7] if self.is_immutable else self.revision)
        return self.name.rpartition("/")[2] + (f"@{revision}" if revision else "")

    def __str__(self) -> str:
        return f"hub:{self.name}" + (f"@{self.revision}" if self.revision else "")


class Artifact(NamedTuple):
    """An artifact of Weights & Biases. entity: None for that of the user. alias: a version such as v3, or a name."""

    entity: str | None
    project: str
    name: str
    alias: str

    @property
    def is_immutable(self) -> bool:
        """Whether this is a version, with its entity, which cannot change."""
        return self.entity is not None and VERSION.fullmatch(self.alias) is not None

    @property
    def path(self) -> str:
        """The name by which Weights & Biases knows the artifact."""
        return "/".join([*filter(None, [self.entity]), self.project, f"{self.name}:{self.alias}"])

    @property
    def shown(self) -> str:
        """The name in tables."""
        return f"{self.name}:{self.alias}"

    def __str__(self) -> str:
        return f"wandb:{self.path}"


def is_reference(name: object) -> bool:
    """Returns whether a model's name begins as a reference does. A folder of such a name is given as ./hub:a."""
    return isinstance(name, str) and name.startswith(SCHEMES)


def parse_reference(name: str) -> HubModel | Artifact | None:
    """Returns what a name that begins with hub: or wandb: refers to; None for a folder or a plain name on the Hub.

    Raises ModelError if it begins like this, but is none.
    """
    scheme, _, rest = name.partition(":")
    if scheme == "hub":
        return _hub_model(name, rest)
    return _artifact(name, rest) if scheme == "wandb" else None


def _hub_model(given: str, rest: str) -> HubModel:
    name, at, revision = rest.partition("@")
    if not HUB_NAME.fullmatch(name) or bool(at) != bool(REVISION.fullmatch(revision)):
        raise ModelError(
            f"model.name={given} is no name on the Hub; give hub:owner/name, or hub:owner/name@revision with a commit, "
            "tag or branch"
        )
    return HubModel(name, revision or None)


def _artifact(given: str, rest: str) -> Artifact:
    path, _, alias = rest.partition(":")
    parts = path.split("/")
    if len(parts) not in (2, 3) or not all(map(_is_part, [*parts, alias or "latest"])):
        raise ModelError(
            f"model.name={given} is no artifact; give wandb:entity/project/artifact:alias, where alias is a version "
            "such as v3, or a name such as best or latest"
        )
    entity = parts[0] if len(parts) == 3 else None
    return Artifact(entity, parts[-2], parts[-1], alias or "latest")


def _is_part(text: str) -> bool:
    return PART.fullmatch(text) is not None and len(quote(text)) <= MAX_PART
