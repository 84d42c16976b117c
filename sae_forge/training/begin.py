"""The state a run starts from: its newest checkpoint, or weights drawn by the seed, centred on the first rows."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.sinks import sink_norm, without_sinks
from sae_forge.data.windows import Stream
from sae_forge.progress import Progress
from sae_forge.rng import torch_seed
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.feed import reading
from sae_forge.training.further import CHECKPOINTS
from sae_forge.training.initialisation import centre, input_scale, take_sample
from sae_forge.training.plan import Plan
from sae_forge.training.replicas import start_together
from sae_forge.training.state import LEVEL, TrainState, drop_damaged, load_checkpoint


def first_rows(stream: Stream) -> Float[Tensor, "rows d_in"]:
    """What training starts from, the same for every SAE of a read."""
    with reading(stream.part(0).stream, 0, torch.device("cpu")) as batches:
        return take_sample(batches, stream.d_in)


def begin(
    start_rows: Callable[[], Float[Tensor, "rows d_in"]], plan: Plan, folder: Path, progress: Progress
) -> TrainState:
    """The newest checkpoint, or the state before the first step."""
    config, team = plan.config, plan.team
    folders = [folder / name for name in (CHECKPOINTS, LEVEL)]  # the other where it is to be trained further
    if team.world > 1:  # all must find the same one
        with team.led() as first:
            for each in folders if first else ():
                drop_damaged(each, progress)
    sae = _new_sae(plan).to(plan.device)
    own = architecture_of(config).own()
    states = (load_checkpoint(each, sae, progress, plan.share, own) for each in folders)
    state = next((state for state in states if state is not None), None)
    team.agree("checkpoints", {"step": state and state.step})
    if state is not None:
        progress.say(f"going on from step {state.step} of {plan.steps}")
        return state
    sample = start_rows().to(plan.device)
    norm = 0.0 if config.keep_sinks else sink_norm(sample)
    sample = without_sinks(sample, norm)
    middle = centre(sample, config.b_dec_init)
    scale = input_scale(sample, middle)
    with torch.no_grad():
        sae.b_dec.copy_(middle * scale)
    state = TrainState.start(sae, scale, own)
    state.sink_norm = norm
    start_together(state, plan)
    return state


def _new_sae(plan: Plan) -> TopKSAE:
    """The SAE before its first step, or this rank's latents of it, on the CPU."""
    config, seed = plan.config, torch_seed(plan.seed, "sae weights")
    product_dtype = torch.bfloat16 if config.sae_dtype == "bf16" else None
    whole = TopKSAE(plan.d_in, plan.d_sae, plan.k, seed=seed, backend=config.backend, product_dtype=product_dtype)
    if not plan.shards_latents:
        return whole
    own = plan.share.latents(plan.d_sae)
    part = slice(own.start, own.stop)
    some = TopKSAE(plan.d_in, len(own), plan.local_k, seed=None, backend=config.backend, product_dtype=product_dtype)
    with torch.no_grad():
        for mine, every in ((some.W_enc.T, whole.W_enc.T), (some.W_dec, whole.W_dec), (some.b_enc, whole.b_enc)):
            mine.copy_(every[part])
    return some
