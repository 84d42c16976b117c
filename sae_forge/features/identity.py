"""What decides a selection, and what its file is therefore called.

A file is named after its method and a hash of all that decides its content (settings, corpora, SAE weights), so two
selections never overwrite one another, and a name that is there need not be computed again.
"""

from collections.abc import Mapping
from typing import Any

from sae_forge.config.features import FeaturesConfig
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig, plain
from sae_forge.data.shards import ShardReader
from sae_forge.data.texts.sources import corpus_identity
from sae_forge.features.methods.flags import RETAIN_THRESHOLD
from sae_forge.features.methods.method import asked_of, table_of
from sae_forge.features.scores import ACT_RATIO_MAX
from sae_forge.features.selection import FORMAT
from sae_forge.store import files


def file_name(
    method: str,
    config: FeaturesConfig,
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    weights: str,
    *,
    refusal: ShardReader | None = None,
) -> str:
    """Name of the file that holds what ``method`` selects from these shards with these weights."""
    decided_by = {
        "settings": settings(method, config),
        "forget": forget.manifest.sha256,
        "retain": {name: reader.manifest.sha256 for name, reader in retain.items()},
        "refusal": refusal and refusal.manifest.sha256,
        "weights": weights,
        "format": FORMAT,
    }
    if plugins := type(config).catalogue.plugins:  # what they select is compared with
        decided_by["plugins"] = plugins
    return f"{method}-{files.short_hash(decided_by)}.json"


def method_names(config: FeaturesConfig) -> tuple[str, ...]:
    """The selections a config asks for: ``given`` for a list of latents, else one for each method."""
    return tuple(method.name for method in asked_of(config)) if config.latents is None else ("given",)


def settings(method: str, config: FeaturesConfig) -> dict[str, Any]:
    """The settings that decide the result, JSON-ready: a selection is not made anew because of one that does not.

    Those of the other methods are among them, since the analysis says what these would have chosen.
    """
    chosen = config.deciding("selection") | {"num_features": requested(config), "act_ratio_max": ACT_RATIO_MAX}
    bounds = {each.name: each.thresholds(config).get(RETAIN_THRESHOLD) for each in table_of(config)}
    chosen[RETAIN_THRESHOLD] = {name: bound for name, bound in bounds.items() if bound is not None}
    if method == "given":
        return chosen | {"latents": list(config.latents or ())}
    own = next(each for each in table_of(config) if each.name == method)
    if own.settings is not None:
        flags = [name for name in described(own.settings) if name not in described(ModelConfig)]
        chosen |= {name: plain(getattr(config, name)) for name in flags if name != RETAIN_THRESHOLD}
    if own.find:
        chosen |= config.deciding("attribution")
        chosen |= {name: list(map(corpus_identity, named)) for name, named in config.items("attribution").items()}
    return {**chosen, **own.decides(config)}


def requested(config: FeaturesConfig) -> int:
    """Latents asked for: the length of the list given, or the largest of ``num_features``."""
    return max(config.num_features) if config.latents is None else len(config.latents)
