"""What an SAE costs from text on: collecting and training together, ours and the peers', each as its library does it.

Ours writes shards and trains on them; the peers run the model while they train: sparsify under its Trainer, SAELens
with its ActivationsStore. All read the same sequences of tokens of the same model at the same layer, and train as many
steps of as many tokens. Given is processor time, without loading the model; nothing is judged here::

    python tests/benchmarks/counted.py --model smollm2-135m --layer 10 --text wiki.txt --tokens 65536
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import no_triton
from timing import table
from torch import Tensor

from sae_forge.collect import collect
from sae_forge.config.collect import CollectConfig
from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import ShardReader, find_shards
from sae_forge.data.stream import ActivationStream
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.data.texts.packing import iter_packed
from sae_forge.hookpoint import HookPoint
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.sae.store import Provenance
from sae_forge.training.trainer import train_sae

BATCH = 1024


def ours(lm: LanguageModel, sequences: Tensor, options: argparse.Namespace) -> None:
    """``collect``, then what ``train`` does: shards, shuffled, trained on, measured on what was stored."""
    point = HookPoint(options.layer)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        config = CollectConfig(
            run_dir=run, layer=(options.layer,), ctx_len=options.ctx_len, max_tokens=sequences.numel(), bos="none"
        )
        collect(config, lm, [("retain", options.text)])
        readers = [ShardReader(folder) for folder in find_shards(run, str(point))]
        known = readers[0].fingerprint
        provenance = Provenance(
            model=known.model, hook_point=known.hook_point, hf_hook_name=None, ctx_len=known.ctx_len, bos=known.bos,
            datasets=(known.source,), tokenizer=known.tokenizer, weights=known.weights, shards=(),
        )  # fmt: skip
        training = TrainConfig(k=(options.k,), d_sae=(options.d_sae,), batch_size=BATCH)
        stream = ActivationStream(readers, batch_size=BATCH, seed=0)
        train_sae(stream, training, Path(scratch) / "sae", provenance)


def sparsify(lm: LanguageModel, sequences: Tensor, options: argparse.Namespace) -> None:
    """eai-sparsify's Trainer on the model without its head, as its command line loads it."""
    no_triton()
    from datasets import Dataset
    from sparsify import SparseCoderConfig
    from sparsify.config import TrainConfig as Config
    from sparsify.trainer import Trainer

    size = SparseCoderConfig(num_latents=options.d_sae, k=options.k)
    config = Config(
        sae=size, batch_size=BATCH // options.ctx_len, hookpoints=[f"layers.{options.layer}"], layers=[],
        init_seeds=[0], exclude_tokens=[], save_every=10**9, log_to_wandb=False,
    )  # fmt: skip
    given = Dataset.from_dict({"input_ids": sequences.tolist()}).with_format("torch")
    trainer = Trainer(config, given, lm.model.base_model)
    trainer.save = lambda: None  # ours writes its SAE; theirs need not
    trainer.fit()


def sae_lens(lm: LanguageModel, sequences: Tensor, options: argparse.Namespace, *, proxy: bool = True) -> None:
    """SAELens' store and trainer.

    Args:
        proxy: On the model as transformers has it, which it runs to the end; else on a HookedTransformer of the same
            weights, which it stops at the layer.
    """
    from datasets import Dataset
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.sae_trainer import SAETrainer

    hook = f"model.layers.{options.layer}" if proxy else f"blocks.{options.layer}.hook_resid_post"
    model, steps = _hooked(lm, options.layer, proxy), len(sequences) * options.ctx_len // BATCH
    more = torch.cat([sequences, sequences[: len(sequences) // 2]])  # a small buffer: what it holds at the end is waste
    began = time.process_time()
    width = lm.model.config.hidden_size
    store = ActivationsStore(
        model, Dataset.from_dict({"input_ids": more.tolist()}), False, hook, None, options.ctx_len, width, 8,
        steps * BATCH, 8, BATCH, False, "none", torch.device("cpu"), "float32",
    )  # fmt: skip
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=options.d_sae, k=options.k))
    config = SAETrainerConfig(steps * BATCH, BATCH, lr_end=3e-5)
    trainer = SAETrainer(config, sae, data_provider=store)
    for _ in range(steps):
        trainer.step(next(store).to(torch.float32))
        trainer.n_training_steps += 1
    options.spent = time.process_time() - began


def _hooked(lm: LanguageModel, layer: int, proxy: bool) -> Any:
    if proxy:
        from sae_lens.load_model import HookedProxyLM

        return HookedProxyLM(lm.model, lm.tokenizer, hook_names=[f"model.layers.{layer}"])
    from transformer_lens import HookedTransformer

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    return HookedTransformer.from_pretrained_no_processing(name, hf_model=lm.model, tokenizer=lm.tokenizer)


def sae_lens_stopping(lm: LanguageModel, sequences: Tensor, options: argparse.Namespace) -> None:
    """On a HookedTransformer."""
    sae_lens(lm, sequences, options, proxy=False)


METHODS: dict[str, Callable[[LanguageModel, Tensor, argparse.Namespace], None]] = {
    "sae_forge": ours,
    "sparsify": sparsify,
    "SAELens": sae_lens,
    "SAELens, HookedTransformer": sae_lens_stopping,
}


def main() -> None:
    """Time each, one after the other."""
    options = _options()
    lm = load_model(options.model, device="cpu")
    packed = iter_packed(
        iter_texts(options.text),
        lm.tokenizer,
        ctx_len=options.ctx_len,
        batch_size=1,
        bos="none",
        max_tokens=options.tokens,
    )
    rows = [batch.token_ids for batch in packed if bool(batch.attention_mask.all())]
    sequences = torch.cat(rows[: len(rows) // 4 * 4])
    print(f"{sequences.numel():,} tokens in sequences of {options.ctx_len}")
    found = []
    for name in options.method:
        options.spent = None
        began = time.process_time()
        METHODS[name](lm, sequences, options)
        spent = options.spent or time.process_time() - began
        found.append((name, f"{spent:.1f}", f"{1e6 * spent / sequences.numel():.0f}"))
        print(*found[-1], sep="  ", flush=True)
    print(table(("method", "processor seconds", "ms a thousand tokens"), found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--d_sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
