"""What differs between decoder families, as data: one table entry each, read by this room alone.

Most families build their layers as Llama does, so an entry says where it departs from that. What the installed
transformers does was checked family by family: ``tests/models/test_families.py`` holds every entry to the same list.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sae_forge.errors import ConfigError, UnsupportedModelError, did_you_mean
from sae_forge.hookpoint import Site
from sae_forge.settings import read_toml
from sae_forge.store import records


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the residual stream runs in the models of one architecture.

    A layer's output is ``(input + multiplier * attn_out + multiplier * mlp_out + third_out) * scale``, where most
    families have no multiplier, third addend or scale.
    """

    name: str
    model_types: tuple[str, ...]
    """``config.model_type`` of the checkpoints that belong here."""
    layers: str
    """Path from the causal LM to its list of decoder layers."""
    final_norm: str
    """Path from the causal LM to the norm between the last layer and the logits."""
    needs_bos: bool
    """Trained with BOS in front of every sequence, and off its distribution without it."""
    attn_out: tuple[str, ...]
    """Sub-module of a layer whose output is what attention, or what stands in its place, adds to the residual stream;
    of several, the one that the layer has."""
    mlp_out: tuple[str, ...]
    """Sub-module of a layer whose output is what the MLP adds to the residual stream; of several, the one it has."""
    down_proj: tuple[str, ...]
    """Paths from a layer to what its MLP writes through: a projection, or the stacked weights of experts. A layer has
    one of them or more."""
    o_proj: tuple[str, ...] = ("self_attn.o_proj", "linear_attn.out_proj", "mamba.out_proj")
    """Projection through which attention, or what stands in its place, writes; of several, the one the layer has."""
    mlp_beside: str | None = None
    """Sub-module whose output joins that of ``mlp_out``. A layer that has it has no site ``mlp_out``."""
    third_out: str | None = None
    """Sub-module whose output a layer that has it adds after the MLP's."""
    scale: str | None = None
    """Buffer of a layer that multiplies all it gives on."""
    multiplier: str | None = None
    """Setting of the model's config that multiplies what attention and MLP give before it is added."""
    kv_shared: str | None = None
    """Setting of the model's config that counts the uppermost layers which read the keys and values of lower ones."""
    cache_argument: str = "past_key_values"
    """What a layer calls the cache it is given."""

    def adds_as_given(self, site: Site) -> bool:
        """Whether what the module of attention or of the MLP gives is what is added, neither normed nor multiplied."""
        names = self.attn_out if site == "attn_out" else self.mlp_out
        return self.multiplier is None and not any("norm" in name for name in names)


_LLAMA = Family(
    name="llama",
    model_types=("llama",),
    layers="model.layers",
    final_norm="model.norm",
    needs_bos=True,
    attn_out=("self_attn",),
    mlp_out=("mlp",),
    down_proj=("mlp.down_proj",),
)


def _like(base: Family, name: str, *more_types: str, **differing: Any) -> Family:
    return replace(base, name=name, model_types=(name, *more_types), **differing)


_GEMMA2 = _like(
    _LLAMA,
    "gemma2",
    attn_out=("post_attention_layernorm",),  # each branch is normed again before it is added
    mlp_out=("post_feedforward_layernorm",),
)
_GEMMA4 = _like(
    _GEMMA2,
    "gemma4_text",
    third_out="post_per_layer_input_norm",
    scale="layer_scalar",
    kv_shared="num_kv_shared_layers",
)
_INSIDE_IMAGES: Any = {"layers": "model.language_model.layers", "final_norm": "model.language_model.norm"}
"""Where a model that also reads images keeps the one that writes."""
_QWEN2 = _like(_LLAMA, "qwen2", needs_bos=False)
_EXPERTS: Any = {"down_proj": ("mlp.experts.down_proj",)}
_DENSE_OR_EXPERTS: Any = {"down_proj": ("mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_expert.down_proj")}
_LINEAR_OR_FULL: Any = {"attn_out": ("linear_attn", "self_attn")}

_ENTRIES = (
    _LLAMA,
    _like(_LLAMA, "gemma"),
    _GEMMA2,
    _like(_GEMMA2, "gemma3_text"),
    _like(_GEMMA2, "gemma3", **_INSIDE_IMAGES),
    _GEMMA4,
    _like(_GEMMA4, "gemma4", **_INSIDE_IMAGES),
    _like(_LLAMA, "mistral"),
    _like(_LLAMA, "mixtral", **_EXPERTS),
    _QWEN2,
    _like(_QWEN2, "qwen3"),
    _like(_QWEN2, "qwen3_moe", **_DENSE_OR_EXPERTS),
    _like(_QWEN2, "qwen3_next", **_LINEAR_OR_FULL, **_DENSE_OR_EXPERTS),
    _like(_QWEN2, "qwen3_5", "qwen3_5_text", **_LINEAR_OR_FULL),  # transformers leaves the part for images out
    _like(_GEMMA2, "olmo2", needs_bos=False),
    _like(_GEMMA2, "olmo3", needs_bos=False),
    _like(_LLAMA, "phi3", needs_bos=False),
    _like(_LLAMA, "gpt_oss", needs_bos=False, **_EXPERTS),
    _like(_LLAMA, "granite", needs_bos=False, multiplier="residual_multiplier"),
    _like(
        _LLAMA,
        "granitemoehybrid",
        needs_bos=False,
        attn_out=("mamba", "self_attn"),
        mlp_out=("shared_mlp",),
        mlp_beside="block_sparse_moe",
        down_proj=("shared_mlp.output_linear", "block_sparse_moe.experts.down_proj"),
        multiplier="residual_multiplier",
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        needs_bos=False,
        attn_out=("attention",),
        o_proj=("attention.dense",),
        mlp_out=("mlp",),
        down_proj=("mlp.dense_4h_to_h",),
        cache_argument="layer_past",
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        layers="transformer.h",
        final_norm="transformer.ln_f",
        needs_bos=False,
        attn_out=("attn",),
        o_proj=("attn.c_proj",),
        mlp_out=("mlp",),
        down_proj=("mlp.c_proj",),
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ENTRIES}

_FOUR_STREAMS = (
    "its layers pass on four residual streams at once, and no sum of parts holds for any of them, so there is no "
    "residual stream to read or edit; use a Gemma 3 or Gemma 4 model"
)
REFUSED = {"gemma3n": _FOUR_STREAMS, "gemma3n_text": _FOUR_STREAMS}
"""Why there is no entry for an architecture that one would expect here, by ``config.model_type``."""


def family_of(model_type: str, name: str) -> Family:
    """The entry that covers ``model_type``.

    Args:
        name: The model as the user named it, for the message.

    Raises:
        UnsupportedModelError: no entry does; lists those there are and says how to bring another.
    """
    for family in _ENTRIES:
        if model_type in family.model_types:
            return family
    if reason := REFUSED.get(model_type):
        raise UnsupportedModelError(f"model {name} is of type {model_type!r}, which is not supported: {reason}")
    raise UnsupportedModelError(
        f"model {name} is of type {model_type!r}; supported: {', '.join(FAMILIES)} "
        "(another is a TOML file, --family FILE.toml, or from Python load_model(name, family=Family(...)); "
        "docs/families.md says what it holds)"
    )


def read_family(path: Path) -> Family:
    """The family that a TOML file describes: each key a field of :class:`Family`; ``like`` names the entry of which it
    takes what it does not say.

    Raises:
        ConfigError: it cannot be read, or holds another key, lacks one, or has one of another type.
    """
    said = read_toml(path, "--family")
    like = said.pop("like", None)
    if like is not None and like not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"--family {path} is like {like!r}{did_you_mean(str(like), FAMILIES)}; there are {known}")
    if isinstance(name := said.get("name"), str):
        said.setdefault("model_types", [name])
    try:
        return records.decode(Family, (asdict(FAMILIES[like]) if like else {}) | said)
    except ValueError as flaw:
        possible = ", ".join(["like", *(field.name for field in fields(Family))])
        raise ConfigError(f"--family {path} describes no family: {flaw}; possible: {possible}") from None
