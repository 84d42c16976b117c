"""MUSE's two series of requests to forget (arXiv 2407.06460, C5 and C6), done to each method that retrains.

``scal``: each fold is forgotten by itself, from the given model; MUSE's four grow. ``sust``: the folds come one after
the other, each forgotten by the model that forgot those before, as its released code hands the weights on. Every row
is a fold; what is kept is asked as ever, in MUSE by ``--knowmem_retain``. Edits are made from activations of a forget
corpus, so of those each fold is a run of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge import benchmarks
from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError, ForgeError
from sae_forge.methods.method import Method, Settings, Wrapper, done_to
from sae_forge.progress import SILENT, Progress

if TYPE_CHECKING:
    from sae_forge.interventions.edit import Edit
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Subject
    from sae_forge.methods.weights.recipe import Recipe
    from sae_forge.methods.weights.texts import Texts
    from sae_forge.models.loading import LanguageModel

FOLDS = Setting(names_items=True, younger=True)


@dataclass(frozen=True, kw_only=True)
class FoldSettings(ModelConfig):
    """The folds of either series."""

    heading: ClassVar[str] = "Retraining"

    scal: Annotated[
        tuple[str, ...],
        "scal: texts that each retraining method named beside it forgets, each alone; or muse-news.",
        FOLDS,
    ] = ()
    sust: Annotated[
        tuple[str, ...], "sust: texts that each of them forgets one after the other; or muse-news.", FOLDS
    ] = ()


@dataclass(frozen=True, eq=False)
class InTurn:
    """Weights from which one text after the other was trained away, each by the same recipe."""

    recipe: "Recipe"
    requests: "tuple[Texts, ...]"
    retain: "Texts"
    seed: int
    edits: tuple["Edit", ...] = ()
    changes_weights: bool = True

    def weights(self, lm: "LanguageModel", progress: Progress = SILENT) -> "LanguageModel":
        """What is left after the last request; trained anew at each call."""
        from sae_forge.methods.weights.training import unlearn

        for forget in self.requests:
            lm = unlearn(lm, self.recipe, forget, self.retain, seed=self.seed, progress=progress)
        return lm


def folds_of(name: str, config: Any) -> list[str]:
    """The sources of a series, in their order; a benchmark that has such folds stands for them."""
    given: tuple[str, ...] = getattr(config, name)
    expanded = [[part for part in benchmarks.PARTS if part.startswith(f"{one}-{name}-")] or [one] for one in given]
    return [source for sources in expanded for source in sources]


def _texts(source: str, materials: "Materials") -> "Texts":
    """A fold as token sequences, packed as the run's own text is."""
    import torch

    from sae_forge.methods.weights.texts import MAX_SEQUENCES, Texts
    from sae_forge.tasks.engines.losses import load_corpus

    config = replace(materials.config, loss_tokens=MAX_SEQUENCES * materials.config.ctx_len)
    batches = load_corpus(materials.lm, source, "forget", config).batches
    ids, mask = (torch.cat(parts) for parts in zip(*((b.token_ids, b.attention_mask) for b in batches), strict=True))
    kept = mask.any(-1)
    return Texts(ids[kept], mask[kept])


def _every(name: str, materials: "Materials") -> "list[Texts]":
    return [_texts(source, materials) for source in folds_of(name, materials.config)]


def _over(wrapper: Wrapper, methods: Sequence[Method]) -> list[Method]:
    return [_folded(wrapper, method) for method in methods if method.kind == "weights" and not method.parts]


def _folded(wrapper: Wrapper, method: Method) -> Method:
    texts = partial(_every, wrapper.name)
    key = f"{wrapper.name}_fold"

    def build(settings: Settings, materials: "Materials") -> "Subject":
        from sae_forge.methods.subjects import Retrained

        inner = method.build({name: value for name, value in settings.items() if name != key}, materials)
        assert isinstance(inner, Retrained)
        requests, last = materials.once(texts), settings[key]
        chosen = requests[:last] if wrapper.name == "sust" else requests[last - 1 : last]
        return InTurn(inner.recipe, tuple(chosen), inner.retain, inner.seed)

    def each(settings: Iterable[Settings], materials: "Materials") -> list[Settings]:
        count = len(folds_of(wrapper.name, materials.config))
        return [one | {key: fold} for one in settings for fold in range(1, count + 1)]

    return done_to(
        method,
        wrapper,
        from_flags=lambda size, materials: each(method.from_flags(size, materials), materials),
        build=build,
        joined=lambda chosen, materials: each(chosen[:1], materials)[-1],
    )


def _missing(name: str, materials: "Materials") -> ForgeError | None:
    if getattr(materials.config, name, ()):
        return None
    return ConfigError(f"--methods {name} needs the texts of its folds: --{name} muse-news, or files in their order")


def _wrapper(name: str, words: str) -> Wrapper:
    return Wrapper(
        name=name,
        title=lambda settings: words.format(settings[f"{name}_fold"]),
        from_flags=lambda materials: {f"{name}_fold": len(folds_of(name, materials.config))},
        needs=partial(_missing, name),
        settings=FoldSettings,
        over=_over,
    )


SCAL = _wrapper("scal", "fold {} alone")
SUST = _wrapper("sust", "folds 1 to {} in turn")
