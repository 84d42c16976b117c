"""What is held out for measuring is the end of each corpus, and training sees nothing of it."""

from pathlib import Path

import torch

from sae_forge.data.held_out import HELD_OUT, WHOLE, held_out
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.models.tokens import real_token_mask
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines.losses import load_corpus


def corpus_of(rows: int, folder: Path, shard_rows: int) -> ShardReader:
    """Sequences of 12 tokens, the last of them as long as the rows reach, in batches of a sequence."""
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=2, storage_dtype="fp32",
        ctx_len=12, bos="none", batch_size=1, max_tokens=None, corpus="c", source="c", role="retain",
    )  # fmt: skip
    with ShardWriter(folder, fingerprint, shard_rows=shard_rows) as writer:
        for number, places in enumerate(torch.arange(rows).int().split(12)):
            writer.write_batch(number, torch.randn(len(places), 2), places // 12, places % 12, places)
        writer.finish()
    return ShardReader(folder)


def test_nothing_is_held_out_of_a_single_block(tmp_path):
    assert held_out([corpus_of(240, tmp_path, 256)]) == {}, "training would take what is measured on"


def test_a_short_corpus_spares_more_than_its_last_few_tokens(tmp_path):
    reader = corpus_of(241, tmp_path, 12)  # 20 whole sequences, and one of a single token
    assert held_out([reader])[reader].sequences == 19, "an FVU of one row says nothing"


def test_the_text_that_is_measured_on_is_that_which_no_batch_holds(plugged_run):
    run = plugged_run
    found = held_out([run.shards.forget, *run.shards.retain.values()])
    names = {reader.fingerprint.corpus for reader in found}
    assert names == set(run.shards.retain), "what is forgotten is all trained on"
    for reader, part in found.items():
        trained = reader.only(part.blocks)
        seen = torch.cat([block.seq_ids for block in trained.iter_blocks()])
        blocks = list(reader.iter_blocks())
        seq_ids, token_ids = (torch.cat([getattr(one, name) for one in blocks]) for name in ("seq_ids", "token_ids"))
        sequences = int(seq_ids.max()) + 1
        assert len(seen) == trained.rows < reader.rows and int(seen.max()) < part.sequences
        assert sequences - part.sequences == max(WHOLE, round(HELD_OUT * sequences))
        source = str(run.texts / f"{reader.fingerprint.corpus}.jsonl")
        config = eval_config()(ctx_len=reader.fingerprint.ctx_len, loss_tokens=10_000, eval_batch_size=3)
        corpus = load_corpus(run.lm, source, "retain", config, beyond=part.sequences)
        ids = torch.cat([
            batch.token_ids[real_token_mask(batch.token_ids, batch.attention_mask, run.lm.special_ids)]
            for batch in corpus.batches
        ])  # fmt: skip
        assert torch.equal(ids, token_ids[seq_ids >= part.sequences].long())
        short = load_corpus(run.lm, source, "retain", eval_config()(ctx_len=24, loss_tokens=20), beyond=part.sequences)
        assert short.rows == 1 and torch.equal(short.batches[0].seq_ids, torch.tensor([part.sequences]))
