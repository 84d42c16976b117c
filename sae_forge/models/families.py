"""What differs between decoder families, as data: one table entry each, read by loading and hooks alone."""

from dataclasses import dataclass

from sae_forge.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the residual stream runs in the models of one architecture."""

    name: str
    model_types: tuple[str, ...]
    """``config.model_type`` of the checkpoints that belong here."""
    layers: str
    """Path from the causal LM to its list of decoder layers."""
    attn_out: str
    """Sub-module of a layer whose output is what attention adds to the residual stream."""
    mlp_out: str
    """Sub-module of a layer whose output is what the MLP adds to the residual stream."""
    down_proj: str
    """Path from a layer to the projection through which its MLP writes."""
    projections: tuple[str, ...]
    """Paths from a layer to every projection in it, ``down_proj`` among them."""
    final_norm: str
    """Path from the causal LM to the norm between the last layer and the logits."""
    needs_bos: bool
    """Trained with BOS in front of every sequence, and off its distribution without it."""


_PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def _llama_like(name: str, *, needs_bos: bool) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        layers="model.layers",
        attn_out="self_attn",
        mlp_out="mlp",
        down_proj="mlp.down_proj",
        projections=_PROJECTIONS,
        final_norm="model.norm",
        needs_bos=needs_bos,
    )


_ENTRIES = (
    _llama_like("llama", needs_bos=True),
    _llama_like("gemma", needs_bos=True),
    Family(
        name="gemma2",
        model_types=("gemma2",),
        layers="model.layers",
        attn_out="post_attention_layernorm",  # Gemma 2 norms each branch again before adding it
        mlp_out="post_feedforward_layernorm",
        down_proj="mlp.down_proj",
        projections=_PROJECTIONS,
        final_norm="model.norm",
        needs_bos=True,
    ),
    _llama_like("mistral", needs_bos=True),
    _llama_like("qwen2", needs_bos=False),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        layers="transformer.h",
        attn_out="attn",
        mlp_out="mlp",
        down_proj="mlp.c_proj",
        projections=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        final_norm="transformer.ln_f",
        needs_bos=False,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ENTRIES}


def family_of(model_type: str, name: str) -> Family:
    """The entry that covers ``model_type``.

    Args:
        name: The model as the user named it, for the message.

    Raises:
        UnsupportedModelError: no entry does; lists those there are and where to add one.
    """
    for family in _ENTRIES:
        if model_type in family.model_types:
            return family
    raise UnsupportedModelError(
        f"model {name} is of type {model_type!r}; supported: {', '.join(FAMILIES)} "
        "(a new family is one entry in sae_forge/models/families.py)"
    )
