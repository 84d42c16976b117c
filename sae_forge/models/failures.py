"""What can go wrong while a model is fetched and loaded, each as one line with the right exit code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sae_forge import builtin
from sae_forge.errors import ForgeError, ResourceError, UnsupportedModelError, did_you_mean
from sae_forge.settings import presets
from sae_forge.store import hub_errors
from sae_forge.store.hub_errors import READING, Asked, Trouble

USE_BUILT_IN = f"or use --model {builtin.MODELS[0]}, which needs no network"
_WORDS: Mapping[Trouble, str] = {
    **READING,
    "other": "{name} cannot be loaded as a safetensors causal language model: {error}",
}


def slip(name: str) -> str:
    """`` (did you mean …?)`` where a built-in model, one of a preset or one beside it is called alike."""
    path = Path(name).expanduser()
    beside = [str(Path(name).parent / each.parent.name) for each in path.parent.glob("*/config.json")]
    known = [model for preset in presets().values() for model in preset["models"]]
    return did_you_mean(name, (*builtin.MODELS, *known, *beside))


@contextmanager
def one_line(name: str, *, local: bool, revision: str | None = None) -> Iterator[None]:
    """Turn what transformers and the Hub client raise while loading into one line and the right exit code."""
    asked = Asked(
        name=name,
        page=f"huggingface.co/{name}",
        flag="--model and --revision",
        revision=revision or "main",
        instead=f"{slip(name)}; {USE_BUILT_IN}",
        words=_WORDS,
        kinds={"name": UnsupportedModelError, "other": UnsupportedModelError},
    )
    drew_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ForgeError:
        raise
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{name} does not fit on its device; try --quantize 4bit or --device_map auto") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise hub_errors.told(error, asked, "other" if local else None) from error
    finally:
        if drew_bars:
            transformers_logging.enable_progress_bar()
