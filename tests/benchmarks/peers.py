"""One training step of every trainer that is installed, each as its library makes it, on the same weights and batches.

What a trainer does around the step (reading a model's activations, logging) is left out for all alike; what it does to
take a step is left in, a wait for the device included. A package that is not installed is named and passed over.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from made_up import Problem, Weights
from torch import Tensor, nn

from sae_forge.config.train import Backend, TrainConfig
from sae_forge.kernels.rows import BETAS, EPS
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.plan import Plan
from sae_forge.training.replay import Stepper
from sae_forge.training.state import TrainState
from sae_forge.training.step import train_step

OURS = "sae_forge"
DENSE = "dense torch"
AUXK_ALPHA = 1 / 32
DEAD_AFTER = 10_000_000
"""Tokens after which our trainer, sparsify and dictionary_learning call a latent dead."""
STEPS = 100_000
"""Length of the run that schedules are told of; none falls within a benchmark."""


class Trainer(Protocol):
    """A method in the middle of a run."""

    def step(self, batch: Tensor) -> None:
        """Move the weights once."""

    def weights(self) -> Weights:
        """The weights as they are now."""
        ...


class Method:
    """A trainer by name, or why it cannot be had."""

    def __init__(self, make: Callable[[Problem], Trainer], package: str | None = None) -> None:
        self.make, self.package = make, package

    @property
    def missing(self) -> str | None:
        """Why this method is passed over; None if it is there."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return "not installed"


# ---- ours and the reference ---------------------------------------------------------------------


class Ours:
    """A step as ``sae_forge.training.trainer`` takes it.

    Args:
        played: On a GPU, from the CUDA graph that the trainer records; otherwise launch by launch.
    """

    def __init__(
        self,
        given: Problem,
        *,
        backend: Backend = "auto",
        max_grad_norm: float | None = None,
        played: bool = True,
        architecture: str = TrainConfig.architecture,
    ) -> None:
        sizes = given.sizes
        config = TrainConfig(
            k=(sizes.k,),
            d_sae=(sizes.d_sae,),
            batch_size=sizes.tokens,
            lr=given.lr,
            lr_warmup=0.0,
            lr_decay=0.0,
            auxk_alpha=AUXK_ALPHA,
            dead_after=DEAD_AFTER,
            max_grad_norm=max_grad_norm,
            sae_dtype="bf16" if given.half else "fp32",
            backend=backend,
            architecture=architecture,
        )
        shape = config.saes(sizes.d_in)[0]._asdict()
        plan = Plan(config=config, d_in=sizes.d_in, **shape, steps=STEPS, lr=given.lr, device=given.device)
        product_dtype = torch.bfloat16 if given.half else None
        sae = TopKSAE(sizes.d_in, sizes.d_sae, sizes.k, seed=None, backend=backend, product_dtype=product_dtype)
        sae = sae.to(given.device)
        with torch.no_grad():
            for name, weight in given.weights()._asdict().items():
                getattr(sae, name).copy_(weight)
        self.state = TrainState.start(sae, 1.0, architecture_of(config).own())
        if given.dead is not None:
            self.state.tokens = DEAD_AFTER
            self.state.tokens_since_fired[given.dead] = DEAD_AFTER
        self._take = Stepper(self.state, plan) if played else partial(train_step, self.state, plan=plan)

    def step(self, batch: Tensor) -> None:
        self.last_loss = self._take(batch)[0]

    def weights(self) -> Weights:
        sae = self.state.sae
        return Weights(*(getattr(sae, name).detach() for name in Weights._fields))


class Dense:
    """The definition in plain torch: every product dense, autograd for every gradient, Adam over everything.

    Args:
        autocast: Make the products in bf16.
    """

    def __init__(self, given: Problem, *, autocast: bool = False, max_grad_norm: float | None = None) -> None:
        self.k, self.dead, self.max_grad_norm = given.sizes.k, given.dead, max_grad_norm
        self.device, self.autocast = given.device, autocast
        self.all = Weights(*(nn.Parameter(weight.clone()) for weight in given.weights()))
        self.optimizer = torch.optim.Adam(self.all, lr=given.lr, betas=BETAS, eps=EPS, fused=True)

    def step(self, batch: Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(batch.float())
        loss.backward()
        W_dec = self.all.W_dec
        assert W_dec.grad is not None
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.all, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss.detach()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    def loss(self, x: Tensor) -> Tensor:
        """FVU, and AuxK where latents are dead."""
        W_enc, b_enc, W_dec, b_dec = self.all
        pre_acts = (x - b_dec) @ W_enc + b_enc
        acts = _keep(pre_acts, self.k, relu=True)
        residual = x - (acts @ W_dec + b_dec)
        loss = residual.square().sum() / _variance(x)
        if self.dead is None or not len(self.dead):
            return loss
        dead, self.dead = self.dead, self.dead[~(acts > 0).any(dim=0)[self.dead]]  # what fires is dead no longer
        kept = min(x.shape[1] // 2, len(dead))
        # AuxK does not move b_dec, which the live latents share.
        answers = (x - b_dec.detach()) @ W_enc + b_enc
        answers = torch.full_like(answers, -torch.inf).index_copy(1, dead, answers[:, dead])
        rest = residual.detach()
        share = (rest - _keep(answers, kept, relu=False) @ W_dec).square().sum() / _variance(rest)
        return loss + AUXK_ALPHA * share * (kept / (x.shape[1] // 2))

    def weights(self) -> Weights:
        return Weights(*(weight.detach() for weight in self.all))


def fvu_of(weights: Weights, x: Tensor, k: int) -> float:
    """The yardstick that all are held to: what these weights leave unexplained of this batch."""
    W_enc, b_enc, W_dec, b_dec = (weight.float() for weight in weights)
    with torch.no_grad():
        x = x.float()
        acts = _keep((x - b_dec) @ W_enc + b_enc, k, relu=True)
        return float((x - acts @ W_dec - b_dec).square().sum() / _variance(x))


def _keep(pre_acts: Tensor, k: int, *, relu: bool) -> Tensor:
    top = torch.topk(pre_acts, k, dim=-1, sorted=False)
    values = top.values.relu() if relu else top.values
    return torch.zeros_like(pre_acts).scatter(-1, top.indices, values)


def _variance(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)).square().sum()


# ---- eai-sparsify -------------------------------------------------------------------------------


class Sparsify:
    """eai-sparsify: its SparseCoder, with its trainer's order of operations."""

    def __init__(self, given: Problem, *, signum: bool = False) -> None:
        if given.device.type == "cpu":
            no_triton()
        from sparsify import SparseCoder, SparseCoderConfig

        sizes = given.sizes
        config = SparseCoderConfig(num_latents=sizes.d_sae, k=sizes.k)
        self.sae = SparseCoder(sizes.d_in, config, device=given.device, dtype=torch.float32)
        start = given.weights()
        with torch.no_grad():
            self.sae.encoder.weight.copy_(start.W_enc.T)
            self.sae.encoder.bias.copy_(start.b_enc)
            self.sae.W_dec.copy_(start.W_dec)
            self.sae.b_dec.copy_(start.b_dec)
        self.optimizer = (
            signum_of(self.sae, sizes.d_sae)[0] if signum else torch.optim.Adam(self.sae.parameters(), given.lr)
        )
        self.alpha = 0.0 if given.dead is None else AUXK_ALPHA
        self.since_fired = torch.zeros(sizes.d_sae, device=given.device, dtype=torch.long)
        if given.dead is not None:
            self.since_fired[given.dead] = DEAD_AFTER + 1

    def step(self, batch: Tensor) -> None:
        sae, x = self.sae, batch.float()
        sae.set_decoder_norm_to_unit_norm()
        dead_mask = self.since_fired > DEAD_AFTER if self.alpha > 0 else None
        out = sae(x=x, y=x, dead_mask=dead_mask, total_variance=(x - x.mean(0)).pow(2).sum())
        float(out.fvu.detach())  # its trainer keeps a running mean of it on the host
        (out.fvu + self.alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.since_fired += len(x)
            self.since_fired[out.latent_indices.flatten()] = 0

    def weights(self) -> Weights:
        sae = self.sae
        return Weights(*(each.detach() for each in (sae.encoder.weight.T, sae.encoder.bias, sae.W_dec, sae.b_dec)))


def no_triton() -> None:
    """On a CPU; it takes Triton wherever Triton imports."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"


def signum_of(sae: nn.Module, d_sae: int, times: float = 1) -> tuple[Any, float]:
    """Its default optimizer at ``times`` its default rate, and that rate."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    rate = times * 5e-3 / (d_sae / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=rate), momentum=0.95)
    optimizer.train()
    return optimizer, rate


# ---- sae-lens -----------------------------------------------------------------------------------


class SaeLens:
    """sae-lens: its TopKTrainingSAE under its SAETrainer.

    Args:
        batch: Its BatchTopKTrainingSAE instead.
        sparse: COO acts, which its own rescaling by the decoder's norms cannot differentiate on a CPU.
        autocast: Its own bf16 autocast.
    """

    def __init__(
        self, given: Problem, *, sparse: bool = False, autocast: bool = False, batch: bool = False
    ) -> None:  # fmt: skip
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        sizes, device = given.sizes, str(given.device)
        rescaling: dict[str, Any] = (
            {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
        )
        kind, settings = TopKTrainingSAE, TopKTrainingSAEConfig
        if batch:
            kind, settings = BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        self.sae = kind(settings(d_in=sizes.d_in, d_sae=sizes.d_sae, k=sizes.k, device=device, **rescaling))
        with torch.no_grad():
            for name, weight in given.weights()._asdict().items():
                getattr(self.sae, name).copy_(weight)
        config = SAETrainerConfig(
            total_training_samples=STEPS * sizes.tokens,
            train_batch_size_samples=sizes.tokens,
            lr=given.lr,
            lr_end=given.lr / 10,
            device=device,
            autocast=autocast,
        )
        self.trainer = SAETrainer(config, self.sae, data_provider=iter(()))
        if given.dead is not None:
            self.trainer.n_forward_passes_since_fired[given.dead] = config.dead_feature_window + 1

    def step(self, batch: Tensor) -> None:
        self.trainer.step(batch.float())

    def weights(self) -> Weights:
        return Weights(*(getattr(self.sae, name).detach() for name in Weights._fields))


# ---- dictionary-learning ------------------------------------------------------------------------


class DictionaryLearning:
    """dictionary-learning: its TopKTrainer.

    Args:
        batch: Its BatchTopKTrainer instead, with a threshold from the first step on, not from the thousandth.
        patched: Its parallel part of the gradient as one product and sum; as shipped an einsum makes it of ``d_sae``
            products with strides, which take longer than the rest of the step.
    """

    def __init__(self, given: Problem, *, patched: bool = False, batch: bool = False) -> None:
        from dictionary_learning.trainers import batch_top_k, top_k

        sizes, start = given.sizes, given.weights()
        self.module = batch_top_k if batch else top_k
        self.shipped = self.module.remove_gradient_parallel_to_decoder_directions
        self.removing = parallel_part_at_once if patched else self.shipped
        self.trainer = (batch_top_k.BatchTopKTrainer if batch else top_k.TopKTrainer)(
            steps=STEPS,
            activation_dim=sizes.d_in,
            dict_size=sizes.d_sae,
            k=sizes.k,
            layer=0,
            lm_name="none",
            lr=given.lr,
            warmup_steps=0,
            threshold_start_step=0 if batch else STEPS,
            device=str(given.device),
        )
        with torch.no_grad():
            ae = self.trainer.ae
            ae.encoder.weight.copy_(start.W_enc.T)
            ae.encoder.bias.copy_(start.b_enc)
            ae.decoder.weight.copy_(start.W_dec.T)
            ae.b_dec.copy_(start.b_dec)
        if given.dead is not None:
            self.trainer.num_tokens_since_fired[given.dead] = DEAD_AFTER

    def step(self, batch: Tensor) -> None:
        self.module.remove_gradient_parallel_to_decoder_directions = self.removing
        try:
            self.trainer.update(1, batch.float())  # its step 0 moves b_dec
        finally:
            self.module.remove_gradient_parallel_to_decoder_directions = self.shipped

    def weights(self) -> Weights:
        ae = self.trainer.ae
        every = (ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec)
        return Weights(*(each.detach() for each in every))


def parallel_part_at_once(weight: Tensor, grad: Tensor, *_: int) -> Tensor:
    """What the shipped function computes; columns are directions."""
    unit = weight.detach() / (weight.detach().norm(dim=0, keepdim=True) + 1e-6)
    return grad.sub_((grad * unit).sum(dim=0) * unit)


# ---- all ----------------------------------------------------------------------------------------


def methods(*, half: bool) -> dict[str, Method]:
    """Every method by name. With bf16 products, those of the peers that offer them are in."""
    found = {
        OURS: Method(Ours),
        f"{OURS}, clipped": Method(lambda given: Ours(given, max_grad_norm=1.0)),
        "sparsify, Adam": Method(Sparsify, "sparsify"),
        "sparsify, default (signum)": Method(lambda given: Sparsify(given, signum=True), "sparsify"),
        "SAELens, sparse": Method(lambda given: SaeLens(given, sparse=True), "sae_lens"),
        "SAELens, default": Method(SaeLens, "sae_lens"),
        "dictionary_learning": Method(DictionaryLearning, "dictionary_learning"),
        "dictionary_learning, einsum patched": Method(
            lambda given: DictionaryLearning(given, patched=True), "dictionary_learning"
        ),
        DENSE: Method(Dense),
    }
    if half:
        found[f"{OURS}, no graph"] = Method(lambda given: Ours(given, played=False))
        found["SAELens, autocast"] = Method(lambda given: SaeLens(given, autocast=True), "sae_lens")
        found[f"{DENSE}, autocast"] = Method(lambda given: Dense(given, autocast=True))
    return found
