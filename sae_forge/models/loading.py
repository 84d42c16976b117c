"""Language models from the Hub, a folder or the package itself, all through the same door.

Only safetensors weights and only transformers' own classes are loaded: no pickle, no code from a repository.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sae_forge import builtin, files
from sae_forge.config import ModelDtype, Quantize
from sae_forge.errors import BackendError, ConfigError, ForgeError, RemoteError, ResourceError, UnsupportedModelError
from sae_forge.models.families import Family, family_of
from sae_forge.tensors import DTYPES

_NO_MODEL = f"a built-in model needs no network: --model {builtin.MODELS[0]}"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in eval mode, its weights frozen, with all that the other rooms ask about it."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    family: Family
    name: str
    """Built-in name, Hub id, or the last part of a local folder's path."""
    revision: str | None = None
    """Commit of a Hub model; None for a folder."""
    folder: Path | None = None
    """Folder of a local or built-in model; None for a Hub model."""
    quantize: Quantize = "none"

    @property
    def n_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where token ids go; with a device map, layers may lie elsewhere."""
        return self.model.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: BOS, EOS, PAD and chat-template tokens, but not the unknown token."""
        tokenizer = self.tokenizer
        marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        marked |= set(tokenizer.all_special_ids)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        return frozenset((marked - {tokenizer.unk_token_id}) | (ends - {None}))

    @property
    def pad_id(self) -> int:
        """The padding token, or what stands in for it where the tokenizer has none (Llama 2): EOS."""
        for index in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if index is not None:
                return index
        return 0

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": self.revision,
            "weights": self.revision or _weights_sha256(self.folder or Path()),
            "tokenizer": _tokenizer_sha256(self.tokenizer),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantize": self.quantize,
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the activations of this model depend on, JSON-ready: name, revision, hashes, arithmetic.

        ``weights`` is the commit of a Hub model and a sha256 of the weight files of a local one;
        ``tokenizer`` is a sha256 of its vocabulary, merges and special ids.
        """
        return dict(self._fingerprint)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: ModelDtype = "auto",
    device: str = "auto",
    device_map: str | None = None,
    quantize: Quantize = "none",
) -> LanguageModel:
    """The model called ``name``, ready for reading and editing; its weights take no gradient.

    The configuration is read first, so a model without a family entry is refused before its weights are fetched.

    Args:
        name: A built-in name, a local folder, or a Hub id.
        dtype: ``auto`` is fp32 on a CPU and the stored precision on a GPU.
        device_map: Spreads the model over devices as accelerate does; ``device`` is then ignored.

    Raises:
        UnsupportedModelError: no such folder, a folder that is no model, a family without entry.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
        BackendError: bitsandbytes or the device asked for is missing.
        ResourceError: the device's memory does not hold it.
    """
    folder = _local_folder(name)
    source = str(folder or name)
    placed = _placement(device, device_map)
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    with _explained(name, folder):
        config = AutoConfig.from_pretrained(source, **common)
        family = family_of(config.model_type, name)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=_dtype(dtype, placed),
            device_map=placed,
            quantization_config=_quantization(quantize, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    if report["missing_keys"]:
        raise UnsupportedModelError(
            f"{name} lacks weights its configuration asks for: {sorted(report['missing_keys'])[0]} …"
        )
    model.eval().requires_grad_(False)
    commit = None if folder else getattr(config, "_commit_hash", None)
    shown = name if folder is None or name in builtin.MODELS else folder.resolve().name
    return LanguageModel(model, tokenizer, family, shown, commit, folder, quantize)


# ---- where it is and where it goes --------------------------------------------------------------


def _local_folder(name: str) -> Path | None:
    """The folder ``name`` stands for, or None when it is to be looked up on the Hub."""
    if (folder := builtin.model_folder(name)) is not None:
        return folder
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise UnsupportedModelError(f"model folder {name} does not exist; give a folder, a Hub id, or {_NO_MODEL}")
        return None
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(
            f"{name} is not a model folder: it holds no config.json; "
            "give what `save_pretrained` wrote, a Hub id, or --model " + builtin.MODELS[0]
        )
    return path


def _placement(device: str, device_map: str | None) -> str | dict[str, str]:
    if device_map is not None:
        return device_map
    if device == "auto":
        return {"": "cuda:0" if torch.cuda.is_available() else "cpu"}
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


def _quantization(quantize: Quantize, dtype: ModelDtype) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError(
            f"--quantize {quantize} needs bitsandbytes, which is not installed: pip install sae-forge[quant]"
        )
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else DTYPES[dtype],
    )


# ---- one line for everything that can go wrong --------------------------------------------------


@contextmanager
def _explained(name: str, folder: Path | None) -> Iterator[None]:
    """Turn what transformers and the Hub client raise while loading into one line and the right exit code."""
    drew_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ForgeError:
        raise
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{name} does not fit on its device; try --quantize 4bit or --device_map auto") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise (_remote_error(name, error) if folder is None else _folder_error(name, error)) from error
    finally:
        if drew_bars:
            transformers_logging.enable_progress_bar()


def _folder_error(name: str, error: Exception) -> ForgeError:
    return UnsupportedModelError(
        f"{name} cannot be loaded as a safetensors causal language model: {_first_line(error)}"
    )


def _remote_error(name: str, error: Exception) -> ForgeError:
    """The cause below transformers' wrapping decides; the order matters, as the Hub's errors are subclasses."""
    causes = _chain(error)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(GatedRepoError):
        return RemoteError(f"{name} is gated: ask for access at huggingface.co/{name}, then {_LOG_IN}; {_NO_MODEL}")
    if caused_by(RevisionNotFoundError):
        return RemoteError(f"{name} has no such revision on the Hub; check --revision")
    if caused_by(RepositoryNotFoundError):
        return RemoteError(f"{name} is not on the Hub, or is private; check the name, or {_LOG_IN}; {_NO_MODEL}")
    if caused_by(HFValidationError):
        return UnsupportedModelError(f"{name!r} is neither a folder nor a Hub id of the form owner/name; {_NO_MODEL}")
    statuses = [cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response]
    status = statuses[0] if statuses else None
    if status in (401, 403):
        return RemoteError(f"the Hub refused {name} (HTTP {status}); {_LOG_IN}; {_NO_MODEL}")
    if status is not None and status != 404:
        return RemoteError(f"the Hub answered HTTP {status} for {name}; try again later; {_NO_MODEL}")
    if caused_by(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) or _could_not_connect(causes):
        return RemoteError(f"{name} is not in the local cache and the Hub cannot be reached (no network?); {_NO_MODEL}")
    return _folder_error(name, error)


def _could_not_connect(causes: list[BaseException]) -> bool:
    """Network failures of whichever HTTP client the installed Hub library stands on."""
    return any(type(cause).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests") for cause in causes)


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---- identity -----------------------------------------------------------------------------------


def _weights_sha256(folder: Path) -> str:
    """One hash over the weight files and the configuration of a folder, in the order of their names."""
    parts = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return files.digest([[part.name, files.file_sha256(part)] for part in parts])


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """One hash over what decides the token ids; not over padding and truncation, which calls change."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    decisive = {key: value for key, value in model.items() if key not in ("padding", "truncation", "version")}
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return files.digest({"tokenizer": decisive, "ends": ends})


def parameter_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of ``model`` take, as loaded."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
