"""What methods are made from: the selection, and what the collected activations say of norms, rates and texts.

Everything is read once, when the first method asks for it; a report of plain edits needs no shards at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.config.evaluate import EvalConfig
from sae_forge.data.shards import ShardReader
from sae_forge.data.sinks import are_sinks, without_sinks
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.analysis import traces
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.intervention import chosen_tokens
from sae_forge.interventions.values import median_norm, relative_to_norm
from sae_forge.methods.weights.texts import Texts, load_texts
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.slices import rows_of

Flags = TypeVar("Flags")
Made = TypeVar("Made")
SAMPLE_ROWS = 8192
"""Tokens of a corpus that norms are measured on."""
READ_AT_ONCE = 8
"""Sequences that the model reads at once, where a gate counts tokens that shards do not hold."""
TRACED = 512
"""Sequences of each retain corpus that gates are calibrated on; a 95th percentile is then good to about one point."""


@dataclass(frozen=True)
class Shards:
    """Collected activations at the SAE's hook point."""

    forget: ShardReader
    retain: dict[str, ShardReader]


@dataclass(frozen=True, eq=False)
class Materials:
    """One model, one SAE, one selection and what was collected for them."""

    lm: LanguageModel = field(repr=False)
    sae: Dictionary = field(repr=False)
    point: HookPoint
    selection: Selection
    config: EvalConfig
    collected: Shards | None = None
    _made: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False, init=False)

    @property
    def shards(self) -> Shards:
        """The collected activations.

        Raises:
            DataError: there are none.
        """
        if self.collected is None:
            raise DataError(
                "relative values, calibrated gates and retrained baselines need the activations that the selection was "
                "made from, and this run folder does not hold them; run features again"
            )
        return self.collected

    @property
    def sink_norm(self) -> float | None:
        """Length beyond which an activation is a sink's and stays as it is; None where sinks are edited too."""
        return None if self.config.keep_sinks else self.selection.sink_norm

    def setting(self, kind: type[Flags]) -> Flags:
        """The config as that part of it which holds the flags of one method.

        Raises:
            ConfigError: it was not composed with that part.
        """
        if not isinstance(self.config, kind):
            raise ConfigError(f"{type(self.config).__name__} has no flags of {kind.__name__}; use study.settings")
        return self.config

    @cached_property
    def retain_norm(self) -> float:
        """Median L2 norm of the activation of a retain token."""
        return median_norm(torch.cat([self._sample(reader) for reader in self.shards.retain.values()]))

    @cached_property
    def forget_sample(self) -> Float[Tensor, "1 tokens d_in"]:
        """Activations of forget tokens."""
        return self._sample(self.shards.forget)[None]

    @cached_property
    def forget_texts(self) -> Texts:
        """The forget corpus as token sequences."""
        return load_texts(self.lm, [self.shards.forget])

    @cached_property
    def retain_texts(self) -> Texts:
        """The retain corpora as token sequences."""
        return load_texts(self.lm, list(self.shards.retain.values()))

    def once(self, make: Callable[["Materials"], Made]) -> Made:
        """What ``make`` makes of these materials, made when first asked for."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def value(self, times: float, latents: tuple[int, ...]) -> float:
        """``times`` in the units that the config asks for, as an act: as it is, or relative to the residual norm."""
        if self.config.value_units == "absolute" or times == 0:
            return times
        # the rows add up, so what is written to many latents is divided by the norm of their sum
        return relative_to_norm(times, self.retain_norm, rows_of(self.sae, latents))

    @cached_property
    def _traces(self) -> dict[str, tuple[Tensor, ...]]:
        latents = torch.tensor(self.selection.indices)
        retain = self.shards.retain.items()
        if self.config.gate_tokens != "real":
            return {name: self._counted(load_texts(self.lm, [reader]), latents) for name, reader in retain}
        return {name: traces(reader, self.sae, latents, TRACED, sink_norm=self.sink_norm) for name, reader in retain}

    def _counted(self, texts: Texts, latents: Tensor) -> tuple[Tensor, ...]:
        """Acts on the tokens that a gate counts; shards hold no special ones, so the model reads the texts again."""
        latents, of_texts = latents.to(self.sae.b_dec.device), []
        for rows in torch.arange(0, len(texts), -(-len(texts) // TRACED)).split(READ_AT_ONCE):
            batch = texts.rows(rows)
            attended, real = batch.attention_mask, real_token_mask(*batch, self.lm.special_ids)
            x = capture(self.lm, [self.point], *batch)[self.point].to(latents.device)
            with torch.no_grad():
                acts = self.sae.latent_acts(x.to(self.sae.b_dec.dtype), latents).float().cpu()
            ordinary = ~are_sinks(x, self.sink_norm).to(attended.device)
            touched, counted = (
                chosen_tokens(which, real, attended) & ordinary
                for which in (self.config.tokens, self.config.gate_tokens)
            )
            acts = torch.where(touched[..., None], acts, 0.0)
            of_texts += [row[kept] for row, kept in zip(acts, counted, strict=True)]
        return tuple(of_texts)

    def traces(self, latents: tuple[int, ...]) -> dict[str, tuple[Float[Tensor, "_ n"], ...]]:
        """Acts of the latents on the sequences of each retain corpus, on the tokens that a gate counts."""
        # traces hold a column for each selected latent, read once for all methods
        place = {latent: number for number, latent in enumerate(self.selection.indices)}
        columns = torch.tensor([place[latent] for latent in latents])
        return {name: tuple(trace[:, columns] for trace in several) for name, several in self._traces.items()}

    def _sample(self, reader: ShardReader) -> Float[Tensor, "tokens d_in"]:
        return without_sinks(_sample(reader), self.sink_norm)


def _sample(reader: ShardReader) -> Float[Tensor, "tokens d_in"]:
    """Activations from the beginning, the middle and the end of a corpus, in float32."""
    # neighbouring rows come of the same texts, so blocks are taken from all over the corpus
    blocks = reader.block_count
    size = max(1, reader.read_acts(0).shape[0])
    wanted = min(blocks, -(-SAMPLE_ROWS // size))
    chosen = sorted({number * blocks // wanted for number in range(wanted)})
    return torch.cat([reader.read_acts(block).float() for block in chosen])[:SAMPLE_ROWS]
