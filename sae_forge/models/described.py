"""What a model's configuration says before its weights are read."""

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.families import family_of
from sae_forge.models.loading import config_of


def norms_take_mean(name: str, *, revision: str | None = None) -> bool:
    """Whether the norms of the model take the mean over the width off, as LayerNorm does and RMSNorm does not.

    Only its configuration is read.

    Raises:
        UnsupportedModelError: no such folder.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    return not hasattr(config_of(name, revision=revision).get_text_config(), "rms_norm_eps")


def module_at(name: str, point: HookPoint) -> str:
    """The module whose output is the point, from the base model on, as ``layers.3.mlp``; only its config is read.

    Raises:
        ConfigError: no module gives it: a layer's input, or what is normed or multiplied before it is added.
        UnsupportedModelError: no such folder, or of no known family.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    family = family_of(config_of(name).model_type, name)
    layer = f"{family.layers.rpartition('.')[2]}.{point.layer}"
    if point.site == "resid_post":
        return layer
    if point.site not in ("attn_out", "mlp_out") or not family.adds_as_given(point.site):
        raise ConfigError(f"no module of {name} gives {point}, as it is normed or multiplied before it is added")
    module, *others = family.attn_out if point.site == "attn_out" else family.mlp_out
    if others:
        raise ConfigError(f"{point} of {name} is given by one of {', '.join((module, *others))}, as the layer has it")
    return f"{layer}.{module}"
