"""A model that was loaded by somebody else, with transformers alone, as the rest of this package knows models."""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sae_forge.config.model import Quantize
from sae_forge.errors import ForgeError, UnsupportedModelError
from sae_forge.models.families import family_of
from sae_forge.models.loading import LanguageModel, load_tokenizer, shown_name
from sae_forge.models.rotary import keep_within

AnyModel = LanguageModel | PreTrainedModel
"""A model of ``load_model``, or any causal language model of transformers."""

_TOKENIZERS: WeakKeyDictionary[PreTrainedModel, PreTrainedTokenizerBase] = WeakKeyDictionary()


def language_model(model: AnyModel, tokenizer: PreTrainedTokenizerBase | None = None) -> LanguageModel:
    """The same model, weights, mode and device untouched, with what edits and readers ask about it.

    What takes a model of either kind calls this itself. Call it first where the tokenizer is not found beside the
    weights: which tokens are special, and so never edited, is the tokenizer's to say. It is remembered for the model.
    A model whose rotary frequencies follow its longest text refuses longer texts from here on (``models.rotary``).

    Args:
        tokenizer: None: the one given before, else what stands where the model was loaded from.

    Raises:
        UnsupportedModelError: no causal language model, a family without entry, or no tokenizer to be found.
        RemoteError: its tokenizer is on the Hub alone, which cannot be reached.
    """
    if isinstance(model, LanguageModel):
        return model
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        raise UnsupportedModelError(
            f"a {type(model).__name__} is no causal language model; give what AutoModelForCausalLM.from_pretrained "
            "or load_model returns"
        )
    source: str = model.name_or_path or ""
    family = family_of(model.config.model_type, source or type(model).__name__)
    if model not in _TOKENIZERS:
        keep_within(model, source or type(model).__name__)
    tokenizer = tokenizer or _TOKENIZERS.get(model) or _beside(model)
    _TOKENIZERS[model] = tokenizer
    loaded: Any = model
    return LanguageModel(
        model,
        tokenizer,
        family,
        name=shown_name(source) if source else type(model).__name__,
        revision=getattr(loaded.config, "_commit_hash", None),
        folder=Path(source) if source and Path(source).is_dir() else None,
        quantize=_quantized(model),
    )


def _quantized(model: PreTrainedModel) -> Quantize:
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else "none"


def _beside(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that stands where the weights came from."""
    advice = "call language_model(model, tokenizer) before"
    source: str = model.name_or_path or ""
    if not source:
        raise UnsupportedModelError(f"a {type(model).__name__} made here has no tokenizer beside it; {advice}")
    try:
        return load_tokenizer(source, revision=getattr(model.config, "_commit_hash", None))
    except ForgeError as error:
        raise type(error)(f"{error}; or {advice}") from error
