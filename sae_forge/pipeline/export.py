"""``export``: what the selected latents fire on, as delphi caches it and as Neuronpedia's dashboards are fed.

Both are written here, since their packages pull in much else. Sources: EleutherAI delphi (``latents/cache.py``,
``latents/loader.py``), SAEDashboard (``neuronpedia/neuronpedia_dashboard.py``).
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from sae_forge.config.export import ExportConfig
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.firings import Fired, firings
from sae_forge.features.selection import SelectedLatent, Selection
from sae_forge.features.snippets import CONTEXT
from sae_forge.hub.plan import public_name
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import shards_of
from sae_forge.sae.named import NamedSAE
from sae_forge.sae.slices import rows_of
from sae_forge.store import files

EXAMPLES, BARS, ALIGNED = 20, 50, 3
"""Sequences shown of a latent, bars of its histogram, and neurons its direction is compared with."""
SITE = "https://www.neuronpedia.org"


def export(config: ExportConfig, bench: Bench) -> Outcome:
    """A folder that the tool reads, there whole or not at all.

    Raises:
        DataError: the activations that the selection was made from are gone.
        ConfigError: the folder is there already.
    """
    config = bench.settle(config)
    named = bench.sae(config.sae, partly=True)
    selection = Selection.load(bench.selection(config.selection, named.folder), weights=named.weights)
    shards = shards_of(selection, bench.run, named.point)
    if shards is None:
        raise DataError(f"the activations the selection was made from are gone; collect them: {bench.next('collect')}")
    out = config.out or bench.run.folder / "export" / config.to
    if out.exists():
        raise ConfigError(f"{out} is there already; name another --out, or delete it")
    corpora = [*([shards.forget] if config.include_contexts else []), *shards.retain.values()]
    if not config.include_contexts:
        bench.progress.say("text of the forget corpus stays home, and so does what fires there: --include_contexts")
    tokenizer = bench.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    filler = next(each for each in known if isinstance(each, int))
    fired = firings(corpora, named.sae, selection.indices, filler=filler, sink_norm=selection.sink_norm)
    names = [reader.fingerprint.corpus for reader in corpora]
    with files.publish_folder(out) as scratch:
        if config.to == "delphi":
            _delphi(scratch, fired, named, config, names)
        else:
            _neuronpedia(scratch, fired, named, selection, config, bench, names)
    return Outcome(
        run=bench.run,
        outputs={"export": out},
        metrics={"latents": len(selection.indices), "firings": len(fired.acts), "sequences": len(fired.tokens)},
        summary=f"{len(selection.indices)} latents, {len(fired.acts):,} firings in {', '.join(names)}\n{out}",
        noted=False,
    )


def _public(named: NamedSAE) -> str:
    """Its model's name for what others will read; nothing for a folder of this machine."""
    return public_name(named.provenance.model, named.provenance.weights)


def _delphi(scratch: Path, fired: Fired, named: NamedSAE, config: ExportConfig, names: list[str]) -> None:
    module = scratch / (named.provenance.hf_hook_name or str(named.point))
    module.mkdir()
    tokens, row, latent = fired.tokens.numpy(), fired.locations[:, 0], fired.locations[:, 2]
    edges = torch.linspace(0, named.sae.d_sae, steps=config.splits + 1).long().tolist()
    for start, end in pairwise(edges):
        inside = (latent >= start) & (latent < end)
        places = fired.locations[inside].clone()
        places[:, 2] -= start  # a file counts its latents from its own first one
        small = max(int(row.max()) if len(row) else 0, end - start, tokens.shape[1]) < 2**16
        tensors = {
            "locations": places.numpy().astype(np.uint16 if small else np.uint32),
            "activations": fired.acts[inside].half().numpy(),
            "tokens": tokens,
        }
        save_file(tensors, module / f"{start}_{end - 1}.safetensors")
    told = {
        "dataset_repo": ", ".join(names), "dataset_split": "", "dataset_name": "", "dataset_column": "text",
        "batch_size": 1, "cache_ctx_len": tokens.shape[1], "n_tokens": tokens.size, "n_splits": config.splits,
        "model_name": _public(named),
    }  # fmt: skip
    (module / "config.json").write_bytes(files.sealed_json(told))


def _neuronpedia(
    scratch: Path, fired: Fired, named: NamedSAE, selection: Selection, config: ExportConfig, bench: Bench,
    names: list[str],
) -> None:  # fmt: skip
    model, source = (config.neuronpedia_id or f"{_public(named)}/{named.folder.name}").rsplit("/", 1)
    spelled: dict[int, str] = {}

    def piece(token: int) -> str:
        if token not in spelled:
            spelled[token] = bench.decode([token])
        return spelled[token]

    common = {"n_prompts_total": len(fired.tokens), "n_tokens_in_prompt": fired.tokens.shape[1]}
    rows = rows_of(named.sae, selection.indices).float().cpu()
    features = [
        {**_latent(latent, selection, fired, row, piece), **common, "dataset": ", ".join(names)}
        for latent, row in zip(selection.latents, rows, strict=True)
    ]
    batch = {"model_id": model, "layer": named.point.layer, "sae_set": source, "features": features}
    (scratch / "batch-0.json").write_bytes(files.sealed_json(batch))
    if config.neuronpedia_id is not None:
        links = {str(latent): f"{SITE}/{config.neuronpedia_id}/{latent}" for latent in selection.indices}
        (scratch / "links.json").write_bytes(files.sealed_json(links))


def _latent(
    latent: SelectedLatent, selection: Selection, fired: Fired, row: torch.Tensor, piece: Callable[[int], str]
) -> Mapping[str, Any]:
    """One latent in the words of a dashboard; what would take the model's unembedding is left empty."""
    mine = (fired.locations[:, 2] == latent.index).nonzero()[:, 0]
    acts, top = fired.acts[mine], row.topk(min(ALIGNED, len(row)))
    heights, edges = np.histogram(acts.numpy(), BARS) if len(acts) else (np.zeros(0, int), np.zeros(1))
    corpora = {name: corpus.tokens for name, corpus in selection.retain_corpora.items()}
    fires = latent.forget.fires + sum(stats.fires for stats in latent.retain.values())
    empty: dict[str, list[Any]] = {
        name: [] for name in (
            "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "neg_str",
            "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson", "neg_values",
            "pos_str", "pos_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
            "decoder_weights_dist",
        )
    }  # fmt: skip
    return {
        "feature_index": latent.index,
        "neuron_alignment_indices": top.indices.tolist(),
        "neuron_alignment_values": _rounded(top.values),
        "neuron_alignment_l1": _rounded(top.values.abs() / row.abs().sum()),
        "frac_nonzero": fires / (selection.forget_corpus.tokens + sum(corpora.values())),
        "freq_hist_data_bar_values": _rounded(torch.from_numpy((edges[:-1] + edges[1:]) / 2)),
        "freq_hist_data_bar_heights": heights.tolist(),
        "activations": _examples(fired, mine, piece),
        **empty,
    }


def _examples(fired: Fired, mine: torch.Tensor, piece: Callable[[int], str]) -> list[dict[str, Any]]:
    """The sequences on which a latent fires most, strongest first: their tokens around the peak, with its acts."""
    shown, seen = [], set()
    for place in mine[fired.acts[mine].argsort(descending=True)].tolist():
        row, peak, _ = fired.locations[place].tolist()
        if row in seen or len(seen) == EXAMPLES:
            continue
        seen.add(row)
        first, last = max(0, peak - CONTEXT), min(fired.tokens.shape[1], peak + CONTEXT + 1)
        values = torch.zeros(fired.tokens.shape[1])
        here = mine[fired.locations[mine][:, 0] == row]
        values[fired.locations[here][:, 1]] = fired.acts[here]
        top = float(fired.acts[place])
        shown.append({
            "bin_min": -1, "bin_max": round(top, 3), "bin_contains": -1,
            "tokens": [piece(token) for token in fired.tokens[row, first:last].tolist()],
            "values": _rounded(values[first:last]),
        })  # fmt: skip
    return shown


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
