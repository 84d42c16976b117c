"""One command run by several processes: the launcher's environment says which of them this is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sae_forge.config.model import ModelConfig
from sae_forge.config.ranks import RanksConfig
from sae_forge.errors import ConfigError, ForgeError

OVER_RANKS = ("collect", "train", "features", "eval")
"""Commands that know how to share their work out."""


@contextmanager
def as_rank(command: str, config: ModelConfig) -> Iterator[bool]:
    """Be one of the processes the launcher has started; the value is whether this is the one that speaks."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    if command not in OVER_RANKS or not isinstance(config, RanksConfig):
        raise ConfigError(
            f"{command} runs in one process and WORLD_SIZE={os.environ['WORLD_SIZE']}; only {', '.join(OVER_RANKS)} "
            "run over ranks, so start it without torchrun or accelerate"
        )
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told once, and in words
    from sae_forge import ranks

    with ranks.joined(config.dist_timeout, {"command": command, **config.settings(local=False)}, _tell) as team:
        yield team.leads


def leads() -> bool:
    """Whether this is the process that speaks; known before the ranks have joined."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def spoken_by() -> str:
    """What an error of a rank that does not lead begins with."""
    return "" if leads() else f"rank {os.environ.get('RANK')}: "


def _tell(error: ForgeError) -> None:
    sys.stderr.write(f"error: {spoken_by()}{error}\n")
    sys.stderr.flush()
