"""Language models from the Hub, a folder or the package itself, all through the same door.

Only safetensors weights and only transformers' own classes are loaded: no pickle, no code from a repository.
"""

import importlib.util
import json
import logging
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sae_forge import builtin, ranks
from sae_forge.config.model import ModelDtype, Quantize
from sae_forge.errors import BackendError, ConfigError, UnsupportedModelError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.digest import MARK, digest_of_folder, digest_of_tensors
from sae_forge.models.failures import USE_BUILT_IN, one_line, slip
from sae_forge.models.families import FAMILIES, Family, family_of
from sae_forge.models.gguf.cache import converted
from sae_forge.models.opening import Opening
from sae_forge.models.places import require_places, submodule_of
from sae_forge.models.rotary import keep_within
from sae_forge.store import files
from sae_forge.store.tensors import DTYPES

TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "*.tiktoken")
"""How the files are called that transformers makes a tokenizer of."""
ADAPTER = "adapter_config.json"
SHA256 = 64
"""Hex digits of one, which tell it from the 40 of a commit."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in eval mode, its weights frozen, with all that the other rooms ask about it."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    family: Family
    name: str
    """Built-in name, Hub id, or the last part of a local folder's or GGUF file's path."""
    revision: str | None = None
    """Commit of a Hub model; None for a folder."""
    folder: Path | None = None
    """Folder of a local or built-in model; None for a Hub model."""
    quantize: Quantize = "none"
    stored: str = ""
    """How the weights of a GGUF file were stored: ``4-bit (Q4_1 GGUF)``."""
    opens_as: Opening | None = None
    """What a run has recorded that texts open with; None: what the tokenizer says."""

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the part that writes; a model that also reads images keeps it inside its own."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.config.hidden_size

    def layer(self, number: int) -> nn.Module:
        """The decoder layer of that number."""
        return self.model.get_submodule(f"{self.family.layers}.{number}")

    def writer(self, number: int) -> nn.Module:
        """The projection through which attention writes in the layer of that number."""
        return submodule_of(self.layer(number), self.family.o_proj)

    def width(self, point: HookPoint) -> int:
        """How wide activations are at a hook point: as the model, but for ``z``, which holds all heads."""
        if point.site != "z":
            return self.d_model
        writer: Any = self.writer(min(point.layer, self.n_layers - 1))
        return getattr(writer, "in_features", None) or writer.weight.shape[0]  # GPT-2's has its input first

    @property
    def device(self) -> torch.device:
        """Where token ids go; with a device map, layers may lie elsewhere."""
        return self.model.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]

    @property
    def rows(self) -> int:
        """Tokens that the model has an embedding of; its tokenizer may have more, where some were added to it."""
        weight: Any = self.model.get_input_embeddings().weight
        return len(weight)

    @property
    def precision(self) -> str:
        """What was rounded of the weights, for pages and tables; empty where nothing was."""
        loaded = {"4bit": "4-bit (nf4)", "8bit": "8-bit (int8)"}.get(self.quantize, "")
        return ", then ".join(filter(None, (self.stored, loaded)))

    @cached_property
    def opening(self) -> Opening:
        """What every text opens with."""
        return self.opens_as or Opening.of(self.tokenizer, self.family)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: BOS, EOS, PAD and chat-template tokens, but not the unknown token."""
        added = self.tokenizer.added_tokens_decoder
        marked = {index for index, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        ends = {_token_id(self.tokenizer, role) for role in ("bos", "eos", "pad")}
        kept = (marked - {_token_id(self.tokenizer, "unk")}) | ends
        return frozenset(index for index in kept if index is not None)

    @cached_property
    def special_strings(self) -> tuple[str, ...]:
        """How the tokens are spelled that control the model, the longest first."""
        strings = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(sorted(strings, key=lambda text: (-len(text), text)))

    @property
    def pad_id(self) -> int:
        """The padding token, or where there is none (Llama 2), or none that the model has a row for, EOS."""
        ends = (_token_id(self.tokenizer, role) for role in ("pad", "eos"))
        return next((index for index in ends if index is not None and index < self.rows), 0)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": self.revision,
            "weights": self.weights,
            "tokenizer": _tokenizer_sha256(self.tokenizer),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            **({"stored": self.stored} if self.stored else {}),
            **({} if self.family in FAMILIES.values() else {"family": files.short_hash(asdict(self.family))}),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the activations of this model depend on, JSON-ready: name, revision, hashes, arithmetic.

        ``weights`` is a digest of the tensors (``models.digest``), the same wherever they are and whatever they are
        called; ``tokenizer`` is a sha256 of its vocabulary, merges and special ids.
        """
        return dict(self._fingerprint)

    @cached_property
    def weights(self) -> str:
        """What the weights are known by: a digest of their tensors, without that of the tokenizer."""
        folder = self.folder or _cached_folder(self.name, self.revision)
        of_files = None if folder is None else digest_of_folder(folder, self.model.state_dict().keys())
        return of_files or digest_of_tensors(self.model.state_dict())

    def weights_as(self, record: str) -> str:
        """What these weights are known by in the way of a record, which may be older than digests; else empty.

        It is equal to ``record`` if that is of these weights.
        """
        if record.startswith(MARK) or not record:
            return self.weights
        if self.folder is not None:
            return _weights_sha256(self.folder) if len(record) == SHA256 else ""
        return self.revision or ""


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: ModelDtype = "auto",
    device: str = "auto",
    device_map: str | None = None,
    quantize: Quantize = "none",
    family: Family | None = None,
) -> LanguageModel:
    """The model called ``name``, ready for reading and editing; its weights take no gradient.

    The configuration is read first, so a model without a family entry is refused before its weights are fetched.

    Args:
        name: A built-in name, a local folder, a GGUF file or the name of one that is installed, or a Hub id.
        dtype: ``auto`` is fp32 on a CPU and the stored precision on a GPU.
        device_map: Spreads the model over devices as accelerate does; ``device`` is then ignored.
        family: What ``families.FAMILIES`` does not have, or has otherwise. None: the entry of the model's type.

    Raises:
        UnsupportedModelError: no such folder, a folder that is no model, a family without entry.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
        BackendError: bitsandbytes or the device asked for is missing.
        ResourceError: the device's memory does not hold it.
    """
    gguf = converted(name)
    folder = gguf.folder if gguf else _local_folder(name)
    source = str(folder or name)
    placed = _placement(device, device_map)
    computed = _dtype(dtype, placed)
    quantization = _quantization(quantize, computed)
    common = _common(revision)
    with one_line(name, local=folder is not None, revision=revision):
        config = AutoConfig.from_pretrained(source, **common)
        entry = family or family_of(config.model_type, name)
        tokenizer = _tokenizer(source, name, common)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=computed,
            device_map=placed,
            quantization_config=quantization,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with noise
        raise UnsupportedModelError(f"{name} lacks {len(missing)} weights its config.json asks for, as {missing[0]}")
    model.eval().requires_grad_(False)  # norms and embeddings too, which quantising leaves trainable
    keep_within(model, name)
    if family:
        require_places(model, family, name)
    commit = None if folder else getattr(config, "_commit_hash", None) or common["revision"]
    return LanguageModel(
        model, tokenizer, entry, shown_name(name), commit, folder, quantize, stored=gguf.stored if gguf else ""
    )


def shown_name(name: str) -> str:
    """The model as artefacts name it: without the path of a local folder or file."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() and name not in builtin.MODELS else name


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model called ``name``; no weights are fetched or read.

    Raises:
        UnsupportedModelError: no such folder, or one without a tokenizer.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    folder = _local_folder(name)
    with one_line(name, local=folder is not None, revision=revision):
        return _tokenizer(str(folder or name), name, _common(revision))


def _tokenizer(source: str, name: str, common: dict[str, Any]) -> PreTrainedTokenizerBase:
    folder = Path(source)
    try:
        if not folder.is_dir() or any(each for pattern in TOKENIZER_FILES for each in folder.glob(pattern)):
            return AutoTokenizer.from_pretrained(source, **common)
    except (OSError, ValueError) as error:  # what transformers 4 and 5 say of a repository without any
        if not re.search("load tokenizer for|instantiate the backend tokenizer", str(error)):
            raise
    raise UnsupportedModelError(
        f"{name} holds no tokenizer files; copy them from the base model, as tokenizer.json and tokenizer_config.json"
    )


def config_of(name: str, *, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        UnsupportedModelError: no such folder.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    folder = _local_folder(name)
    with one_line(name, local=folder is not None, revision=revision):
        return AutoConfig.from_pretrained(str(folder or name), **_common(revision))


# ---- where it is and where it goes --------------------------------------------------------------


def _local_folder(name: str) -> Path | None:
    """The folder ``name`` stands for, or None when it is to be looked up on the Hub."""
    if (folder := builtin.model_folder(name)) is not None:
        return folder
    if (gguf := converted(name)) is not None:
        return gguf.folder
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise UnsupportedModelError(
                f"model folder {name} does not exist{slip(name)}; give a folder, a Hub id, {USE_BUILT_IN}"
            )
        return None
    if not (path / "config.json").is_file() and (path / ADAPTER).is_file():
        adapter = files.read_json(path / ADAPTER, kind=UnsupportedModelError, what="the settings of a LoRA adapter")
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        raise UnsupportedModelError(
            f"{name} is a LoRA adapter, no model; merge it into {base or 'its base model'} first (peft: "
            "merge_and_unload, then save_pretrained, beside the tokenizer)"
        )
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(
            f"{name} is not a model folder: it holds no config.json; give what save_pretrained wrote, {USE_BUILT_IN}"
        )
    return path


def _common(revision: str | None) -> dict[str, Any]:
    return {"revision": revision or "main", "trust_remote_code": False}


def _placement(device: str, device_map: str | None) -> str | dict[str, str]:
    if device_map is not None:
        return device_map
    if device == "auto":
        # each rank of a machine takes a card of its own
        return {"": f"cuda:{ranks.here().local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"}
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"--model_device {device} is no device; choose auto, cpu, cuda, or cuda:N") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"--model_device {device}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --model_device cpu or auto"
        )
    return {"": device}


def _dtype(dtype: ModelDtype, placed: str | dict[str, str]) -> torch.dtype | str:
    if dtype != "auto":
        return DTYPES[dtype]
    on_cpu = placed == {"": "cpu"} or not torch.cuda.is_available()
    return torch.float32 if on_cpu else "auto"


def _quantization(quantize: Quantize, computed: torch.dtype | str) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError(
            f"--quantize {quantize} needs bitsandbytes, which is not installed: pip install sae-forge[quant]"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # in 8 bits it warns of every product of the model
    if quantize == "8bit":
        # Above bitsandbytes' own threshold of 6 it takes columns out for all tokens of a call at once, so that a row's
        # numbers hang on its neighbours (0.1 on logits of 4.5); at 0 a row is the same alone and in any batch.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if computed == "auto" else computed,
    )


# ---- identity -----------------------------------------------------------------------------------


def _token_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    index = getattr(tokenizer, f"{role}_token_id")
    return index if isinstance(index, int) else None


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """Where the Hub's client keeps the files of a model that was loaded from there."""
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _weights_sha256(folder: Path) -> str:
    """What weights were known by before 0.3: one hash over the files of a folder, in the order of their names."""
    parts = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return files.digest([[part.name, files.file_sha256(part)] for part in parts])


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """One hash over what decides the token ids; not over padding and truncation, which calls change."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    decisive = {key: value for key, value in model.items() if key not in ("padding", "truncation", "version")}
    ends = [_token_id(tokenizer, role) for role in ("bos", "eos", "pad")]
    return files.digest({"tokenizer": decisive, "ends": ends})


def parameter_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of ``model`` take, as loaded."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
