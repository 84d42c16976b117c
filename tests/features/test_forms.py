"""The forms of two sides are compared and said, and what marks form alone is left out of a selection unless asked."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.data.texts.plain import normal
from sae_forge.features.forms import LIKE, compared
from sae_forge.features.select import select
from sae_forge.features.selection import YOUNGER, Selection
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE
from sae_forge.store.files import publish_json
from sae_forge.study.settings import features_config

STORY = "The old king said that he would ride to the sea, and his men did not want to go with him.\n"
PLAIN = "".join(f"'It is {n} o'clock,' she said, and they went to the house of the baker's wife.\n" for n in range(80))
CURLY = PLAIN.replace(" '", " ‘").replace("\n'", "\n‘").replace("'", "’")


def test_typographic_quotes_on_one_side_alone_are_named_and_shared_ones_are_not():
    (said,) = compared(CURLY, {"plain": PLAIN}).lines()
    assert "typographic quotes" in said and "straight quotes 0 in 1,000 letters" in said
    assert "--keep_form" in said and "--normalize_text" in said and "capitals" not in said
    assert compared(CURLY, {"plain": PLAIN, "curly": CURLY}).lines() == []
    assert compared(normal(CURLY), {"plain": normal(PLAIN)}).lines() == []


@pytest.mark.parametrize(
    ("forget", "named"),
    [
        (PLAIN.upper(), "capitals"),
        (PLAIN.replace(",", " --").replace("and", "-- and"), "double hyphens"),
        (PLAIN.replace(" ", "\n"), "line breaks"),
        (PLAIN.replace("she", "<i>she</i>"), "mark-up"),
        (PLAIN.replace("house", "домъ"), "Cyrillic letters"),
    ],
)
def test_each_trait_of_form_is_named(forget, named):
    assert named in compared(forget, {"plain": PLAIN}).lines()[0]


def test_without_text_of_the_same_kind_style_and_topic_are_not_told_apart():
    list_like = "".join(f"Granite, {n} parts quartz; basalt; river gravel; limestone.\n" for n in range(80))
    (said,) = compared(STORY * 40, {"rocks": list_like}).lines()
    assert "style and topic are not told apart" in said and "rocks " in said
    found = compared(PLAIN + STORY * 40, {"rocks": list_like, "stories": STORY * 60 + PLAIN})
    assert found.alike == ("stories",) and found.distances["stories"] < LIKE < found.distances["rocks"]
    assert not [line for line in found.lines() if "style" in line]


def test_documents_of_another_length_are_named():
    lengths = {"": 9.0, "plain": 400.0}
    assert "documents of 9 tokens, elsewhere 400" in compared(PLAIN, {"plain": PLAIN}, lengths=lengths).lines()[0]
    assert compared(PLAIN, {"plain": PLAIN}, lengths={"": 9.0, "plain": 30.0}).lines() == []


def test_normal_text_has_one_spelling_a_paragraph_a_line_and_no_mark_up():
    made = normal("“It’s”—he said…\n_so_ very  late\n\n\nThe  next")
    assert made == '"It\'s" - he said... so very late\nThe next'
    assert normal(" = Title = \n\n 3 @,@ 5 metres @-@ long , or <i>so</i> .") == "Title\n3,5 metres-long, or so."
    assert normal("snake_case and 2 * 3 stay") == "snake_case and 2 * 3 stay"


# ---- latents that mark form ---------------------------------------------------------------------

WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "owl", "the", "’", "'", "\n", "THE")
QUOTE, STRAIGHT, BREAK, SHOUT = (WORDS.index(word) for word in ("’", "'", "\n", "THE"))
OWL, THE = WORDS.index("owl"), WORDS.index("the")


def decode(token_ids: list[int]) -> str:
    return " ".join(WORDS[token] for token in token_ids)


def corpus(folder: Path, tokens: torch.Tensor, role: str) -> ShardReader:
    """Shards in which latent j answers to one token: 0 to ’, 1 to owl, 2 to THE, 3 to what follows a line break."""
    answers = [tokens == QUOTE, tokens == OWL, tokens == SHOUT, torch.roll(tokens == BREAK, 1)]
    acts = torch.where(torch.stack(answers, dim=1), 2.0, -1.0)
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=4, storage_dtype="fp32",
        ctx_len=60, bos="none", batch_size=10, max_tokens=None, corpus=folder.name, source=folder.name, role=role,
    )  # fmt: skip
    places = torch.arange(len(tokens))
    with ShardWriter(folder, fingerprint, shard_rows=600) as writer:
        for number, part in enumerate(places.split(600)):
            writer.write_batch(number, acts[part], part // 60, (part % 60).int(), tokens[part].int())
        writer.finish()
    return ShardReader(folder)


def test_latents_that_mark_form_are_left_out_unasked_and_the_traits_are_said(tmp_path):
    generator = torch.Generator().manual_seed(0)
    common = torch.randint(0, 8, (2400,), generator=generator)
    forget, retain = common.clone(), common.flip(0).clone()
    forget[::9], forget[4::13], forget[2::17], forget[8::41] = QUOTE, OWL, SHOUT, BREAK
    retain[::9], retain[2::17], retain[8::400] = STRAIGHT, THE, BREAK
    mine, theirs = corpus(tmp_path / "forget", forget, "forget"), corpus(tmp_path / "retain", retain, "retain")
    eye = torch.eye(4)
    sae = TopKSAE.from_weights(eye, torch.zeros(4), eye, torch.zeros(4), k=4)
    chosen, said = {}, []
    for keep in (False, True):
        ear = SimpleNamespace(say=said.append, task=SILENT.task)
        config = features_config()(num_features=(4,), keep_form=keep, max_freq=0.5)
        with_text = select(mine, {"r": theirs}, sae, config, decode, ear, name="n", weights="w")["inlp"]
        chosen[keep] = dict(zip(with_text.indices, with_text.latents, strict=True))
        assert with_text.filtered.get("keep_form", 0) == (0 if keep else 3)
    assert list(chosen[False]) == [1] and sorted(chosen[True]) == [0, 1, 2, 3]
    assert "typographic quotes" in said[0] and "straight quotes 0" in said[0] and "line breaks" in said[0]
    marks = {latent: record.marks for latent, record in chosen[True].items()}
    assert (marks[0]["no_letters"], marks[2]["respelled"], marks[1]["content"], marks[1]["unseen"]) == (1, 1, 1, 1)
    assert marks[3]["line_ends"] > 0.9 and marks[1]["line_ends"] < 0.2
    without_text = select(mine, {"r": theirs}, sae, config, None, name="n", weights="w")["inlp"]
    assert not without_text.latents[0].marks and without_text.forms is None


def test_a_selection_of_before_forms_and_sinks_is_read_as_it_is(tmp_path):
    tokens = torch.arange(600) % 8
    tokens[::9] = OWL
    mine, theirs = corpus(tmp_path / "f", tokens, "forget"), corpus(tmp_path / "r", torch.arange(600) % 8, "retain")
    sae = TopKSAE.from_weights(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), k=4)
    made = select(mine, {"r": theirs}, sae, features_config()(max_freq=0.5), name="n", weights="w")["inlp"]
    record = made.to_json()
    for name in YOUNGER:
        del record[name]
    for latent in record["latents"]:
        del latent["marks"]
    publish_json(tmp_path / "old.json", record)
    assert Selection.load(tmp_path / "old.json") == made
