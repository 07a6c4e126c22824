"""What the name of a model refers to."""

import pytest

from kikitori.references.names import Artifact, HubModel, is_reference, parse_reference
from kikitori.runtime.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hub:openai/whisper-base", HubModel("openai/whisper-base")),
        ("hub:openai/whisper-base@main", HubModel("openai/whisper-base", "main")),
        ("hub:owner/name@refs/pr/1", HubModel("owner/name", "refs/pr/1")),
        (f"hub:owner/name@{COMMIT}", HubModel("owner/name", COMMIT)),
        ("wandb:team/asr/model-a1:best", Artifact("team", "asr", "model-a1", "best")),
        ("wandb:team/asr/model-a1", Artifact("team", "asr", "model-a1", "latest")),
        ("wandb:asr/model-a1:v3", Artifact(None, "asr", "model-a1", "v3")),
    ],
)
def test_a_reference_is_parsed(name: str, found: HubModel | Artifact) -> None:
    assert parse_reference(name) == found
    assert is_reference(name)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize("name", ["openai/whisper-base", "outputs/my-run", "./hub:a/b", "/wandb:a", "~/model"])
def test_other_names_are_none(name: str) -> None:
    assert parse_reference(name) is None
    assert not is_reference(name)


@pytest.mark.parametrize(
    "name",
    ["hub:", "hub:a/b/c", "hub:../b", "hub:a/b@", "hub:a/b@x@y", "hub:a b/c", "hub:a/b@../c", "hub:/a/b", "hub:~/a"],
)
def test_what_is_no_name_of_the_hub_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(ModelError, match=r"is no name on the Hub; give hub:owner/name, or hub:owner/name@revision"):
        parse_reference(name)


@pytest.mark.parametrize(
    "name",
    ["wandb:", "wandb:a", "wandb:a/b/c/d:e", "wandb:../a/b:c", "wandb:a/b/..:v1", "wandb:a/b:../c", "wandb:a//b:c"]
    + [f"wandb:a/b/{name}:v1" for name in ("x" * 256, "ピ" * 29)],
)
def test_what_is_no_artifact_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(ModelError, match=r"is no artifact; give wandb:entity/project/artifact:alias"):
        parse_reference(name)


def test_a_commit_and_a_version_are_immutable() -> None:
    assert HubModel("a/b", COMMIT).is_immutable
    assert not HubModel("a/b", "0123456").is_immutable
    assert not HubModel("a/b").is_immutable
    assert Artifact("team", "asr", "a", "v3").is_immutable
    assert not Artifact("team", "asr", "a", "v3b").is_immutable
    # Whose it is depends on who asks.
    assert not Artifact(None, "asr", "a", "v3").is_immutable
