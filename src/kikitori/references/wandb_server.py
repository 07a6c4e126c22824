"""The server of Weights & Biases: its address, whether it responds, and whether this user can log in without a prompt.

What the working folder holds is never obeyed, and the API key never reaches a log.
"""

import netrc
import os
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from kikitori.runtime.errors import ConfigError
from kikitori.runtime.text import USER_OF_ADDRESS

HOST = "api.wandb.ai"
# Seconds to wait for a first answer.
ANSWER_S = 3.0


def server() -> str:
    """The address of the W&B server, WANDB_BASE_URL if that is set."""
    return os.environ.get("WANDB_BASE_URL", f"https://{HOST}").rstrip("/")


def host() -> str:
    """The host of the W&B server, with its port."""
    return server().split("//")[-1].split("/")[0]


def is_offline() -> bool:
    """Whether WANDB_MODE forbids the network."""
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")


def has_credentials() -> bool:
    """Whether W&B can log in without a prompt: by WANDB_API_KEY, or by ~/.netrc as `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path("~/.netrc").expanduser()).authenticators(host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_reachable(address: str) -> None:
    """Raises TimeoutError unless the server answers within ANSWER_S. In a thread, since a name lookup may hang."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(f"{address}/healthz", timeout=ANSWER_S).close()
            answered.set()
        except HTTPError:  # an answer
            answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if not answered.is_set():
        raise TimeoutError(f"{address} does not answer within {ANSWER_S:.0f} s")


def check_surroundings() -> None:
    """Raises ConfigError if W&B would write a secret to its files, or obey a file of the working folder."""
    from wandb.env import core_debug

    if USER_OF_ADDRESS.search(server()):
        raise ConfigError(
            "WANDB_BASE_URL holds a user or password, which W&B would write to its files; leave these out, and log in "
            "with wandb login --host=..."
        )
    if core_debug(default="False"):
        raise ConfigError("WANDB_DEBUG or WANDB_CORE_DEBUG makes W&B write the API key to its logs; unset both")
    for path in (Path("wandb", "settings"), Path(".wandb", "settings")):
        # It may name proxies, addresses that even an offline run asks for metrics, and folders.
        if path.exists():
            raise ConfigError(
                f"{path.absolute()} may be a stranger's, and W&B would obey it; delete it, or if it is yours, move it "
                "to ~/.config/wandb/settings"
            )
