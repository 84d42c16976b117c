"""What latents fire on, written for delphi and for Neuronpedia, and no text of the forget corpus unasked."""

import json
from pathlib import Path

import torch
from safetensors.numpy import load_file
from tiny_run import TinyRun, forge
from torch import Tensor

from sae_forge.data.shards import ShardReader


def dense(readers: list[ShardReader], run: TinyRun) -> dict[int, dict[tuple[int, int], float]]:
    """Of each selected latent its act at each row and position where it fires, token by token."""
    latents = list(run.selection.indices)
    found: dict[int, dict[tuple[int, int], float]] = {latent: {} for latent in latents}
    first = 0
    for reader in readers:
        last = 0
        for block in reader.iter_blocks():
            acts = run.sae.latent_acts(block.acts, torch.tensor(latents))
            for token, column in (acts > 1e-5).nonzero().tolist():
                place = int(block.seq_ids[token]) + first, int(block.positions[token])
                found[latents[column]][place] = float(acts[token, column])
            last = int(block.seq_ids[-1]) + 1
        first += last
    return found


def read_as_delphi_does(folder: Path) -> tuple[dict[int, dict[tuple[int, int], float]], Tensor]:
    """Locations less the first latent of their file, which stands in its name."""
    found: dict[int, dict[tuple[int, int], float]] = {}
    edges = sorted(tuple(map(int, path.stem.split("_"))) for path in folder.glob("*.safetensors"))
    assert [start for start, _ in edges] == [0, *(end + 1 for _, end in edges[:-1])], (
        "END is inclusive, none is left out"
    )
    tokens = None
    for start, end in edges:
        split = load_file(folder / f"{start}_{end}.safetensors")
        tokens = torch.tensor(split["tokens"].astype("int64"))
        for (row, position, latent), act in zip(
            split["locations"].tolist(), split["activations"].tolist(), strict=True
        ):
            found.setdefault(latent + start, {})[row, position] = act
    assert tokens is not None
    return found, tokens


def test_delphi_finds_every_firing_and_the_forget_corpus_only_where_it_was_asked_for(plugged_run: TinyRun, tmp_path):
    shards = plugged_run.shards
    for flags, readers in (
        ([], list(shards.retain.values())),
        (["--include_contexts"], [shards.forget, *shards.retain.values()]),
    ):
        out = tmp_path / f"cache{len(flags)}"
        forge("export", *plugged_run.where, "--to", "delphi", "--out", str(out), "--splits", "3", *flags)
        (module,) = out.iterdir()
        found, tokens = read_as_delphi_does(module)
        expected = {latent: places for latent, places in dense(readers, plugged_run).items() if places}
        assert {latent: set(places) for latent, places in found.items()} == {
            latent: set(places) for latent, places in expected.items()
        }
        for latent, places in expected.items():
            torch.testing.assert_close(found[latent], places, rtol=1e-3, atol=1e-3)
        texts = {int(one) for reader in readers for block in reader.iter_blocks() for one in block.token_ids}
        assert len(set(tokens.flatten().tolist()) - texts) <= 1, "but for what stands where no real token is"
        told = json.loads((module / "config.json").read_text())
        assert (told["cache_ctx_len"], told["n_splits"]) == (tokens.shape[1], 3)


def test_neuronpedia_gets_a_record_a_latent_and_links(plugged_run: TinyRun, tmp_path):
    out, where = tmp_path / "np", ["--neuronpedia_id", "gemma-2-2b/12-gemmascope-res-16k"]
    forge("export", *plugged_run.where, "--to", "neuronpedia", "--out", str(out), "--include_contexts", *where)
    batch = json.loads((out / "batch-0.json").read_text())
    assert [each["feature_index"] for each in batch["features"]] == list(plugged_run.selection.indices)
    first, latent = batch["features"][0], plugged_run.selection.latents[0]
    shown = max(max(example["values"]) for example in first["activations"])
    peak = max(stats.peak for stats in (latent.forget, *latent.retain.values()))
    assert abs(shown - peak) < 1e-3 * max(1.0, peak)
    assert all(len(example["tokens"]) == len(example["values"]) for example in first["activations"])
    assert sum(first["freq_hist_data_bar_heights"]) == latent.forget.fires + sum(
        one.fires for one in latent.retain.values()
    )
    links = json.loads((out / "links.json").read_text())
    assert links[str(latent.index)] == f"https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/{latent.index}"
    said = forge("export", *plugged_run.where, "--to", "neuronpedia", "--out", str(out), code=2)
    assert "is there already" in said
