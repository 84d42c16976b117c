"""Log-probs in batches, with caches and padding, against the slowest way there is: one text at a time, all logits."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny_tokenizer import TEXT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sae_forge.config.evaluate import EvalConfig
from sae_forge.data.texts.packing import PackedBatch
from sae_forge.errors import DataError, NumericalError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines import continuations
from sae_forge.tasks.engines import losses as language_modeling
from sae_forge.tasks.engines.continuations import Encoded, encode, score
from sae_forge.tasks.engines.generation import Sampling, write
from sae_forge.tasks.engines.losses import load_corpus, sequence_losses
from sae_forge.tasks.engines.multiple_choice import answer, encode_questions, letter_prompt, subject_of
from sae_forge.tasks.engines.passes import forward, picked
from sae_forge.tasks.records import Question

CHOICES = ("a silver owl", "quartz", "the deep ground and the weather", "Hythe")
QUESTIONS = [
    Question(id=str(index), fact=str(index), question=text, choices=CHOICES[index:] + CHOICES[:index], answer=index)
    for index, text in enumerate(("The wizard keeps", "Granite is a rock of", "It cools slowly, deep below", "River"))
]


def slow_logprob(lm: LanguageModel, context: str, continuation: str) -> tuple[float, int]:
    """Sum of log-probs of the tokens after ``context``, from one pass without padding, cache or batch."""
    ids = lm.tokenizer(context + continuation)["input_ids"]
    bare = lm.tokenizer(context)["input_ids"]
    assert ids[: len(bare)] == bare
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [logprobs[place - 1, ids[place]].item() for place in range(len(bare), len(ids))]
    return sum(found), len(found)


def random_sae(lm: LanguageModel) -> TopKSAE:
    return TopKSAE(lm.d_model, 96, 7, seed=5)


# ---- multiple choice ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_cloze_scores_are_those_of_each_option_alone(tiny_model: LanguageModel, batch_size: int, share: bool):
    encoded = encode_questions(tiny_model, QUESTIONS, "cloze", "magic")
    answers = answer(tiny_model, QUESTIONS, encoded, batch_size=batch_size, share=share)
    for question, got in zip(QUESTIONS, answers, strict=True):
        slow = [slow_logprob(tiny_model, question.question, f" {choice}") for choice in question.choices]
        assert [option.logprob for option in got.options] == pytest.approx([value for value, _ in slow], abs=2e-4)
        assert [option.tokens for option in got.options] == [count for _, count in slow]
        assert got.chosen == max(range(4), key=lambda option: slow[option][0])
        assert got.chosen_by_mean == max(range(4), key=lambda option: slow[option][0] / slow[option][1])
        weights = torch.tensor([value for value, _ in slow], dtype=torch.float64).softmax(-1)
        assert got.probability == pytest.approx(weights[question.answer].item(), rel=1e-3, abs=1e-9)


def test_letters_are_scored_after_the_harness_prompt(tiny_model: LanguageModel):
    encoded = encode_questions(tiny_model, QUESTIONS, "letter", "human_aging_test")
    answers = answer(tiny_model, QUESTIONS, encoded, batch_size=3)
    for question, got in zip(QUESTIONS, answers, strict=True):
        prompt = letter_prompt(question, "human_aging_test")
        slow = [slow_logprob(tiny_model, prompt, f" {letter}")[0] for letter in "ABCD"]
        assert [option.logprob for option in got.options] == pytest.approx(slow, abs=2e-4)
        assert got.correct == (slow.index(max(slow)) == question.answer)


def test_the_letter_prompt_is_the_harness_one():
    question = Question(id="0", fact="0", question=" Why? ", choices=("p", "q", "r", "s"), answer=0)
    assert letter_prompt(question, "wmdp-cyber") == (
        "The following are multiple choice questions (with answers) about cybersecurity.\n\n"
        "Why?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    )
    assert "about college biology." in letter_prompt(dataclasses.replace(question, subject="college_biology"), "x")
    assert subject_of("high_school_geography_test") == "high school geography"


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, False])
def test_an_edit_reaches_questions_as_it_reaches_a_plain_pass(tiny_model: LanguageModel, share: bool):
    """Caches, padding and batches must not change what is edited: the hook sees every real token once."""
    edit = Intervention("scale", tuple(range(40)), NegativeScaling(-3.0))
    encoded = encode_questions(tiny_model, QUESTIONS, "cloze", "magic")
    with applied(tiny_model, random_sae(tiny_model), HookPoint(1), edit) as log:
        answers = answer(tiny_model, QUESTIONS, encoded, batch_size=3, share=share)
        edited = log.edited
        slow = [slow_logprob(tiny_model, item.question, f" {c}")[0] for item in QUESTIONS for c in item.choices]
    base = answer(tiny_model, QUESTIONS, encoded, batch_size=3, share=share)
    fast = [option.logprob for got in answers for option in got.options]
    assert fast == pytest.approx(slow, abs=5e-4)
    assert edited > 0
    assert max(abs(a - b.logprob) for a, b in zip(fast, (o for got in base for o in got.options), strict=True)) > 0.05


def test_sharing_a_context_runs_it_once(tiny_llama: LanguageModel):
    encoded = encode_questions(tiny_llama, QUESTIONS, "cloze", "magic")
    edit = Intervention("scale", (0,), NegativeScaling(-3.0))
    seen = {}
    for share in (True, False):
        with applied(tiny_llama, random_sae(tiny_llama), HookPoint(0), edit) as log:
            score(tiny_llama, encoded, batch_size=3, share=share)
        seen[share] = log.tokens
    contexts = sum(len(item.context) - 1 for item in encoded)
    endings = sum(len(target) - 1 for item in encoded for target in item.targets)
    assert seen == {True: contexts + endings, False: 4 * contexts + endings}


def test_a_long_option_pads_no_short_one(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    encoded = [Encoded((1, 40 + number), ((41, 42), (43, 44, 45, 46, 47, 48))) for number in range(4)]
    ran = []

    def counting(lm: LanguageModel, token_ids: torch.Tensor, *rest: Any, **how: Any) -> Any:
        ran.append(token_ids.numel())
        return forward(lm, token_ids, *rest, **how)

    monkeypatch.setattr(continuations, "forward", counting)
    found = score(tiny_llama, encoded, batch_size=4)
    assert ran == [4 * 2, 4 * 1, 4 * 5], "the contexts, the ends of the short options, those of the long ones"
    apart = score(tiny_llama, encoded, batch_size=4, share=False)
    for one, other in zip(found, apart, strict=True):
        assert [got.logprob for got in one] == pytest.approx([got.logprob for got in other], abs=1e-4)


# ---- tokens at the seam -------------------------------------------------------------------------


def with_tokenizer(lm: LanguageModel, tokenizer: Tokenizer) -> LanguageModel:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return dataclasses.replace(lm, tokenizer=fast)


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def test_a_word_start_mark_is_not_scored_twice(tiny_llama: LanguageModel):
    """SentencePiece puts a mark before a text of its own; the target must be tokenised as it stands in the whole."""
    lm = with_tokenizer(tiny_llama, trained(pre_tokenizers.Metaspace(prepend_scheme="first")))
    (encoded,) = encode(lm, [("The river", (" Arn runs", "Arn runs"))])
    whole = lm.tokenizer("The river Arn runs", add_special_tokens=False)["input_ids"]
    assert [*encoded.context, *encoded.targets[0]] == [1, *whole]
    assert encoded.targets[0] == encoded.targets[1]


def test_a_merge_across_the_seam_moves_the_seam_for_all_options(tiny_llama: LanguageModel):
    lm = with_tokenizer(tiny_llama, trained(None))
    question, options = "The river", (" Arn runs past", " of quartz", " keeps a silver owl")
    bare = lm.tokenizer(question, add_special_tokens=False)["input_ids"]
    wholes = [lm.tokenizer(question + option, add_special_tokens=False)["input_ids"] for option in options]
    assert any(whole[: len(bare)] != bare for whole in wholes)  # else this test shows nothing
    (encoded,) = encode(lm, [(question, options)])
    assert [[*encoded.context, *target] for target in encoded.targets] == [[1, *whole] for whole in wholes]


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_target(tiny_llama: LanguageModel):
    spaced, plain, broken = encode(tiny_llama, [("The owl ", ("is",)), ("The owl", ("is",)), ("The owl\n", ("is",))])
    assert spaced == plain
    assert tiny_llama.tokenizer.decode(broken.targets[0]) == "\nis"


def test_a_context_too_long_for_the_model_loses_its_beginning(tiny_llama: LanguageModel):
    (encoded,) = encode(tiny_llama, [("The wizard keeps a book. " * 60, ("quartz", "an owl of silver"))])
    assert encoded.truncated
    assert encoded.context[0] == 1
    assert len(encoded.context) + max(map(len, encoded.targets)) == 128
    assert score(tiny_llama, [encoded], batch_size=2)[0][0].tokens == len(encoded.targets[0])
    with pytest.raises(DataError, match="does not fit"):
        encode(tiny_llama, [("A", ("The wizard keeps a book. " * 60,))])


# ---- prompts ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_target_logprobs_are_those_of_forcing_token_by_token(tiny_model: LanguageModel, batch_size: int):
    texts = [("Granite is", "a rock of quartz"), ("The river Arn runs past seven", "towns"), ("It", "cools")]
    found = score(tiny_model, encode(tiny_model, [(text, (target,)) for text, target in texts]), batch_size=batch_size)
    for (text, follows), (got,) in zip(texts, found, strict=True):
        ids = tiny_model.tokenizer(text)["input_ids"]
        target = tiny_model.tokenizer(f" {follows}", add_special_tokens=False)["input_ids"]
        forced = []
        for token in target:
            with torch.no_grad():
                forced.append(tiny_model.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
            ids = [*ids, token]
        assert got.mean == pytest.approx(sum(forced) / len(forced), abs=1e-4)


def test_nothing_to_score_is_no_score(tiny_llama: LanguageModel):
    assert encode(tiny_llama, []) == []
    assert score(tiny_llama, [], batch_size=4) == []


def test_a_model_that_gives_no_numbers_is_refused(tiny_llama: LanguageModel):
    model = copy.deepcopy(tiny_llama.model)
    model.get_output_embeddings().weight.fill_(math.nan)
    broken = dataclasses.replace(tiny_llama, model=model)
    with pytest.raises(NumericalError, match="not finite"):
        score(broken, [Encoded((1, 5), ((7,),))], batch_size=1)
    with pytest.raises(NumericalError, match="not numbers"):
        write(broken, ["The owl"], Sampling(), batch_size=1)


def test_kept_logits_are_the_models_own(tiny_model: LanguageModel):
    """Soft caps included: kept positions equal the same positions of a full pass."""
    ids = torch.tensor([[1, 40, 41, 42, 43]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        full = tiny_model.model(ids).logits
        kept = forward(tiny_model, ids, mask, keep=torch.tensor([1, 3])).logits
    torch.testing.assert_close(kept, full[:, [1, 3]])


# ---- text ---------------------------------------------------------------------------------------


def test_sequence_losses_are_those_of_a_loop(tiny_model: LanguageModel, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(TEXT))
    config = EvalConfig(ctx_len=17, eval_batch_size=4, loss_tokens=100)
    corpus = load_corpus(tiny_model, str(path), "forget", config)
    found = sequence_losses(tiny_model, corpus.batches)
    slow_nats, slow_tokens = [], []
    for batch in corpus.batches:
        for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True):
            row = ids[mask]
            if len(row) < 2:
                continue
            with torch.no_grad():
                logprobs = tiny_model.model(row[None]).logits[0].log_softmax(-1)
            real = [place for place in range(1, len(row)) if int(row[place]) not in tiny_model.special_ids]
            slow_nats.append(-sum(logprobs[place - 1, row[place]].item() for place in real))
            slow_tokens.append(len(real))
    assert list(found.tokens) == slow_tokens
    assert list(found.nats) == pytest.approx(slow_nats, rel=1e-5)
    assert sum(found.tokens) <= 100
    parts = sequence_losses(tiny_model, corpus.batches, stretch=5)
    assert max(parts.tokens) == 5 and len(parts.tokens) > 2 * len(found.tokens)
    assert sum(parts.tokens) == sum(found.tokens) and sum(parts.nats) == pytest.approx(sum(found.nats))
    assert sum(parts.nats[:4]) == pytest.approx(found.nats[0]), "stretch by stretch of the first sequence"
    assert (corpus.key, corpus.name, corpus.predicted) == ("forget/text", "text", sum(found.tokens))


def test_a_large_vocabulary_costs_a_log_prob_no_digits():
    """``cross_entropy`` loses 3e-5 nats a token over 262,144 tokens in float32, all of them to the same side."""
    logits = 3 * torch.randn(12, 262_144, generator=torch.Generator().manual_seed(0)) - 5
    targets = torch.arange(12)
    exact = logits.double().log_softmax(-1)[targets, targets]
    assert (picked(logits, targets) - exact).abs().max() < 5e-6


def test_few_sequences_at_once_give_the_same_losses(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    batch = PackedBatch(
        0, torch.randint(4, 320, (5, 11), generator=generator), torch.ones(5, 11, dtype=torch.bool), torch.arange(5)
    )
    whole = sequence_losses(tiny_llama, [batch])
    monkeypatch.setattr(language_modeling, "LOGIT_BYTES", 4 * 11 * 320 * 2)
    assert sequence_losses(tiny_llama, [batch]).nats == pytest.approx(whole.nats, rel=1e-5)


def test_rows_of_padding_and_special_tokens_are_never_predicted(tiny_llama: LanguageModel):
    token_ids = torch.tensor([[1, 40, 2, 41, 42], [1, 2, 2, 2, 2], [0, 0, 0, 0, 0]])
    batch = PackedBatch(0, token_ids, token_ids != 0, torch.arange(3))
    losses = sequence_losses(tiny_llama, [batch])
    assert losses.tokens == (3,)


def test_text_with_nothing_to_predict_is_refused(tiny_llama: LanguageModel, tmp_path):
    (tmp_path / "one.txt").write_text("T")
    with pytest.raises(DataError, match=r"one\.txt"):
        load_corpus(tiny_llama, str(tmp_path / "one.txt"), "retain", EvalConfig(bos="none"))
