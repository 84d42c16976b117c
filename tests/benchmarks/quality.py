"""How good an SAE each trainer makes of the same rows of a real model: ours and the peers', each as it is shipped.

All take the same batches in the same order, from their own first weights, by their own rate (``--times`` multiplies
it), schedule and optimizer. Judged alike, on text that was never collected: FVU of its rows, CE recovered with the SAE
in the model, and latents that fire on none of the rows trained on. Sinks are left out throughout, for all. A result is
a line of ``--log``, and one that is there is not made again: stop it at any time, and the same command goes on::

    sae-forge collect --model smollm2-135m --layer 10,15,20 --ctx_len 256 --forget a.txt --retain b.txt --run_dir R
    python tests/benchmarks/quality.py --model smollm2-135m --run_dir R --layer 10 --unseen d.txt,e.txt --log q.jsonl
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peers import no_triton, parallel_part_at_once, signum_of
from rates import Start, per_width, train_rows, trained_by_us
from timing import table
from torch import Tensor

from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.sinks import are_sinks, sink_norm
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture, splice
from sae_forge.models.loading import load_model
from sae_forge.models.tokens import real_token_mask
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.recovered import loss_on
from sae_forge.tasks.engines.losses import load_corpus
from sae_forge.training.explained import Explained
from sae_forge.training.schedule import default_lr, lr_at

AXES = ("layer", "d_sae", "k", "batch", "steps", "seed", "method", "times")


class Made(NamedTuple):
    """What a trainer came to."""

    sae: TopKSAE
    lr: float


# ---- the trainers -------------------------------------------------------------------------------


def ours(start: Start, shape: SaeShape, times: float, **settings: Any) -> Made:
    """As ``train`` takes it, at ``times`` the rate it would choose."""
    rate = times * default_lr(shape.d_sae, start.steps)
    return Made(trained_by_us(start, shape, rate, **settings).sae, rate)


def sparsify(start: Start, shape: SaeShape, times: float, *, adam: bool = False) -> Made:
    """eai-sparsify by default: signum, one rate by width, averaged weights.

    Args:
        adam: Its other optimizer, rising for 5 % of the steps and falling to nothing in the rest.
    """
    no_triton()
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(shape.seed)
    sae = SparseCoder(start.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), device="cpu")
    if adam:
        rate = times * per_width(shape.d_sae)
        optimizer = torch.optim.Adam(sae.parameters(), rate)
        schedule = partial(lr_at, steps=start.steps, peak=1, warmup=0.05, decay=0.95)
    else:
        optimizer, rate = signum_of(sae, shape.d_sae, times)
        schedule = None
    for number, x in enumerate(start.batches()):
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = rate * schedule(number)
        if number == 0:
            sae.b_dec.data = x.mean(dim=0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x=x, total_variance=(x - x.mean(0)).pow(2).sum()).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
    if not adam:
        optimizer.eval()
    sae.set_decoder_norm_to_unit_norm()
    assert sae.W_dec is not None
    return Made(TopKSAE.from_weights(sae.encoder.weight.T, sae.encoder.bias, sae.W_dec, sae.b_dec, shape.k), rate)


def sae_lens(start: Start, shape: SaeShape, times: float, **settings: Any) -> Made:
    """sae-lens by default: TopK under its SAETrainer, one rate for all widths, activations as they are.

    Args:
        settings: ``normalize_activations``, where not.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(shape.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=start.d_in, d_sae=shape.d_sae, k=shape.k, **settings))
    rate = times * SAETrainerConfig.lr
    config = SAETrainerConfig(start.steps * start.batch, start.batch, lr=rate, lr_end=rate / 10)
    trainer = SAETrainer(config, sae, data_provider=start.batches())
    if settings:  # as its ``fit`` does
        trainer.activation_scaler.estimate_scaling_factor(start.d_in, trainer.data_provider, min(100, start.steps))
    for x in start.batches():
        trainer.step(x)
        trainer.n_training_steps += 1
    if (scale := trainer.activation_scaler.scaling_factor) is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    sae.fold_W_dec_norm()
    return Made(TopKSAE.from_weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, shape.k), rate)


def dictionary_learning(start: Start, shape: SaeShape, times: float, *, warmup: float | None = None) -> Made:
    """dictionary-learning by default, but that its warm-up of 1,000 steps is given less where there are fewer.

    Args:
        warmup: Share of the steps.
    """
    from dictionary_learning.trainers import top_k

    steps, rate = start.steps, times * 2e-4 / (shape.d_sae / 2**14) ** 0.5
    rising = min(1000, steps // 2) if warmup is None else round(warmup * steps)
    top_k.remove_gradient_parallel_to_decoder_directions = parallel_part_at_once
    trainer = top_k.TopKTrainer(
        steps=steps, activation_dim=start.d_in, dict_size=shape.d_sae, k=shape.k, layer=0, lm_name="none",
        lr=rate, warmup_steps=rising, seed=shape.seed, device="cpu",
    )  # fmt: skip
    for number, x in enumerate(start.batches()):
        trainer.update(number, x)
    ae = trainer.ae
    return Made(
        TopKSAE.from_weights(ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec, shape.k), rate
    )


METHODS: dict[str, Callable[[Start, SaeShape, float], Made]] = {
    "sae_forge": ours,
    "sae_forge, clipped at 1/600": partial(ours, max_grad_norm=1 / 600),
    "sae_forge, dead after 100,000 tokens": partial(ours, dead_after=100_000),
    "sae_forge, level rate": partial(ours, lr_warmup=0.0, lr_decay=0.0),
    "sparsify": sparsify,
    "sparsify, Adam": partial(sparsify, adam=True),
    "SAELens": sae_lens,
    "SAELens, scaled": partial(sae_lens, normalize_activations="expected_average_only_in"),
    "dictionary_learning": dictionary_learning,
    "dictionary_learning, warm-up 5 %": partial(dictionary_learning, warmup=0.05),
}


# ---- how they are judged ------------------------------------------------------------------------


class Unseen:
    """Text that nobody was trained on, and the model that reads it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.lm = load_model(options.model, device="cpu")
        config = TrainConfig(model=options.model, ctx_len=options.ctx_len, loss_tokens=options.loss_tokens)
        longer = replace(config, loss_tokens=options.row_tokens or options.loss_tokens)
        self.read, self.texts = (
            [load_corpus(self.lm, file, "retain", each) for file in options.unseen.split(",")]
            for each in (longer, config)
        )
        self.base = loss_on(self.lm, self.texts)

    def rows(self, point: HookPoint) -> Float[Tensor, "rows d_in"]:
        """Its activations."""
        rows = []
        for batch in (batch for text in self.read for batch in text.batches):
            real = real_token_mask(batch.token_ids, batch.attention_mask, self.lm.special_ids)
            rows.append(capture(self.lm, [point], batch.token_ids, batch.attention_mask)[point][real].float())
        return torch.cat(rows)


class Judge:
    """What an SAE at one place is worth on it."""

    def __init__(self, unseen: Unseen, point: HookPoint, norm: float) -> None:
        self.lm, self.point, self.texts, self.norm = unseen.lm, point, unseen.texts, norm
        self.rows, self.base = unseen.rows(point), unseen.base
        self.zero = self._loss(torch.zeros_like)

    def _loss(self, rewrite: Callable[[Tensor], Tensor]) -> float:
        def written(x: Tensor, real: Tensor) -> Tensor:
            return torch.where((real & ~are_sinks(x, self.norm))[..., None], rewrite(x), x)

        with splice(self.lm, self.point, written):
            return loss_on(self.lm, self.texts)

    @torch.no_grad()
    def judged(self, sae: TopKSAE) -> dict[str, float]:
        """Its figures, by name."""
        meter, fired = Explained(sae.d_in, norm=self.norm), torch.zeros(sae.d_sae, dtype=torch.bool)
        for x in self.rows.split(4096):
            x_hat, acts = sae.reconstruct(x)
            meter.add(x, x_hat, acts.values)
            fired[acts.indices[acts.values > 0]] = True
        rebuilt = self._loss(sae)
        return {
            "fvu": meter.ordinary.fvu,
            "fvu_pca": meter.fvu_pca(sae.k),
            "l0": meter.ordinary.l0,
            "silent": 1 - float(fired.double().mean()),
            "ce_recovered": (self.zero - rebuilt) / (self.zero - self.base),
            "rows": meter.ordinary.tokens,
            "sinks": meter.sinks,
        }


@torch.no_grad()
def dead_share(sae: TopKSAE, rows: Tensor) -> float:
    """Share of the latents that fire on none of these rows."""
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for x in rows.split(8192):
        acts = sae.encode(x.float())
        fired[acts.indices[acts.values > 0]] = True
    return 1 - float(fired.double().mean())


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    """Train and judge what is not in the log yet, then print all that is."""
    options = _options()
    kept = [json.loads(line) for line in options.log.read_text("utf-8").splitlines()] if options.log.exists() else []
    wanted = [case for case in _cases(options) if not any(case.items() <= line.items() for line in kept)]
    if wanted:
        _measure(options, wanted, kept)
    print(_told(kept))


def _measure(options: argparse.Namespace, wanted: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    deadline, unseen = time.monotonic() + 60 * options.minutes, Unseen(options)
    for layer, cases in itertools.groupby(wanted, lambda case: case["layer"]):
        rows = train_rows(options.run_dir, HookPoint(layer))
        judge = Judge(unseen, HookPoint(layer), sink_norm(rows[:32_768].float()))
        for case in cases:
            if time.monotonic() > deadline:
                return
            kept.append(case | _measured(rows, judge, case))
            with options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(kept[-1]) + "\n")


def _measured(rows: Tensor, judge: Judge, case: dict[str, Any]) -> dict[str, float]:
    start = Start(rows, case["batch"], case["steps"])
    shape = SaeShape(case["k"], case["d_sae"], case["seed"])
    began = time.process_time()
    made = METHODS[case["method"]](start, shape, case["times"])
    seconds = time.process_time() - began
    dead = dead_share(made.sae, rows[:: max(1, len(rows) // 100_000)])
    return {"lr": made.lr, "cpu_ms": 1e3 * seconds / start.steps, "dead": dead, **judge.judged(made.sae)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run of it that has collected")
    parser.add_argument("--layer", type=int, nargs="+", required=True)
    parser.add_argument("--unseen", required=True, help="texts it has not collected, separated by commas")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--loss_tokens", type=int, default=1024, help="of each of these texts")
    parser.add_argument("--row_tokens", type=int, help="of each, for FVU; as many as for the loss if not given")
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=7, help="begin no training after so many")
    numbers = {"d_sae": [4608], "k": [32], "batch": [1024], "steps": [500], "seed": [0]}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, nargs="+", default=default)
    parser.add_argument("--times", type=float, nargs="+", default=[1], help="of each method's own rate")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(getattr(options, axis) for axis in AXES)):
        yield {"model": options.model, **dict(zip(AXES, values, strict=True))}


def _told(lines: list[dict[str, Any]]) -> str:
    first = ("model", *AXES)
    last = {"lr": ".2e", "fvu": ".4f", "fvu_pca": ".3f", "ce_recovered": ".4f", "dead": ".1%", "cpu_ms": ".0f"}
    lines = sorted(lines, key=lambda line: (*(str(line[name]) for name in first[:-2]), line["fvu"]))
    shown = [
        [str(line[name]) for name in first] + [format(line[name], form) for name, form in last.items()]
        for line in lines
    ]
    return table((*first, *last), shown)


if __name__ == "__main__":
    main()
