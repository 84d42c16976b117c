"""What is to be known of an architecture: the tensors it has, and the dictionary that computes the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sae_forge.sae.groupmax import GroupMaxSAE
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE

Built = TopKSAE | JumpReLUSAE | GroupMaxSAE


class Parts(NamedTuple):
    """The weights of an SAE on the way to a dictionary; those of a latent are a row of each."""

    encoders: Tensor
    """[d_sae, d_in], fp32: ``W_enc`` latent by latent."""
    b_enc: Tensor
    """[d_sae], float64, as are the rest but ``W_dec``."""
    W_dec: Tensor
    """[d_sae, d_in], fp32."""
    b_dec: Tensor
    threshold: Tensor


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One rule by which latents fire."""

    name: str
    tensors: tuple[str, ...] = ("b_enc",)
    """Those it has of one number a latent, beside ``W_enc``, ``W_dec`` and ``b_dec``."""
    has_k: bool = False
    alone: bool = False
    """Whether each latent fires by itself, whatever the others do."""
    by_norm: bool = False
    """Whether ``rescale_acts_by_decoder_norm`` means something to it."""
    plain: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor, Tensor | None]] = field(
        default=lambda found: (found["b_enc"], torch.zeros_like(found["b_enc"]), None)
    )
    """From its float64 tensors: ``b_enc``, ``threshold``, and what each encoder column is multiplied by (None: one)."""
    takes_off_b_dec: bool = False
    """Whether the dictionary takes ``b_dec`` off its input."""
    built: Callable[[Parts, int], Built]
    """The dictionary, from its parts and k."""
