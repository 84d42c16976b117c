"""The architectures that can be trained; a new one is a file here and a line in ``_ENTRIES``."""

from sae_forge.config.train import TrainConfig
from sae_forge.errors import ConfigError, did_you_mean
from sae_forge.training.architectures.architecture import TrainedArchitecture
from sae_forge.training.architectures.batchtopk import BATCHTOPK
from sae_forge.training.architectures.topk import TOPK

_ENTRIES = (TOPK, BATCHTOPK)

TRAINED: dict[str, TrainedArchitecture] = {entry.name: entry for entry in _ENTRIES}


def architecture_of(config: TrainConfig) -> TrainedArchitecture:
    """The one that ``config.architecture`` names.

    Raises:
        ConfigError: there is none, or it cannot be trained as the other settings ask.
    """
    if (architecture := TRAINED.get(config.architecture)) is None:
        near = did_you_mean(config.architecture, TRAINED)
        raise ConfigError(f"--architecture {config.architecture[:40]}{near}: choose one of {', '.join(TRAINED)}")
    if reason := architecture.refused(config):
        raise ConfigError(f"--architecture {architecture.name}: {reason}")
    return architecture
