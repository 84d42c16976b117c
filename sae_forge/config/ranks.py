"""How long the processes of one job wait for one another."""

from dataclasses import dataclass
from typing import Annotated

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class RanksConfig(ModelConfig):
    """What a verb can be told that shares its work out over ranks."""

    dist_timeout: Annotated[
        float,
        "Seconds a rank of a job of several may be silent before the job ends.",
        Setting(decides=(), at_least=1, wanted="give at least 1 second"),
    ] = 45.0
