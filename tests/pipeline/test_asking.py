"""What asks a model for attribution: gradients, places against a tokenizer's offsets, latents planted to be found."""

import copy
import dataclasses
import json
import string
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_forge.config.features import FeaturesConfig
from sae_forge.config.questions import Scoring
from sae_forge.data.shards import ShardReader, find_shards
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.methods.attribution import attributions, find
from sae_forge.features.methods.method import Found
from sae_forge.features.select import select
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import differentiable, splice
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.pipeline.asking import attribution
from sae_forge.pipeline.asking.attribution import Asking, load_asked, load_retain_text, sure
from sae_forge.pipeline.asking.gradients import Known, Traced, encode_known, iter_gradients
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.settings import features_config
from sae_forge.tasks.engines.losses import Corpus
from sae_forge.tasks.engines.multiple_choice import encode_questions, prompt_of
from sae_forge.tasks.engines.orders import orders_file
from sae_forge.tasks.item import Role
from sae_forge.tasks.records import Domain, Question, half_of, load_questions

CHOICES = ("a silver owl.", "quartz", "the deep ground, and the weather", "Hythe!")
QUESTIONS = tuple(
    Question(id=f"q{index}", fact=f"f{index}", question=text, choices=CHOICES[index:] + CHOICES[:index], answer=index)
    for index, text in enumerate(("What keeps the wizard, and why?", "Granite is a rock of:", "It cools slowly below"))
)
TEMPLATE = "{{ bos_token }}<turn>{{ messages[0]['content'] | trim }}\n<turn>model\n"
SCORINGS: tuple[Scoring, ...] = ("cloze", "letter", "chat")
POINT = HookPoint(1)


def roomy(lm: LanguageModel) -> LanguageModel:
    """A copy in float64, with room for whole prompts and a chat template."""
    model, tokenizer = copy.deepcopy(lm.model).double(), copy.deepcopy(lm.tokenizer)
    model.config.max_position_embeddings = 512
    tokenizer.chat_template = TEMPLATE
    return dataclasses.replace(lm, model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def world_llama() -> LanguageModel:
    return load_model("tiny-llama", device="cpu")


def traced(lm: LanguageModel, scoring: Scoring, *, batch_size: int = 8, point: HookPoint = POINT) -> list[Traced]:
    exam = encode_known(lm, QUESTIONS, scoring, "magic")
    return list(iter_gradients(lm, point, exam, scoring, batch_size=batch_size))


# ---- gradients ----------------------------------------------------------------------------------


def margin(lm: LanguageModel, known: Known, shift: Tensor, point: HookPoint) -> float:
    """The right answer's margin with the activations of the context moved by ``shift``, each option in its own pass."""

    def moved(x: Tensor, real: Tensor) -> Tensor:
        return x + torch.nn.functional.pad(shift, (0, 0, 0, x.shape[1] - len(shift)))

    targets = known.encoded.targets[:: len(known.encoded.targets) // 4]
    found = []
    with torch.no_grad(), splice(lm, point, moved):
        for target in targets:
            logits = lm.model(torch.tensor([[*known.encoded.context, *target[:-1]]])).logits[0]
            after = logits.double()[len(known.encoded.context) - 1 :]
            if len(target) == 1:
                found.append(after[0, target[0]].item())  # a logit as it is: the margin needs no normaliser
            else:
                found.append(sum(after[step].log_softmax(-1)[token].item() for step, token in enumerate(target)))
    wrong = [value for option, value in enumerate(found) if option != known.question.answer]
    return found[known.question.answer] - sum(wrong) / 3


@pytest.mark.slow
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_gradients_are_finite_differences(tiny_model: LanguageModel, scoring: Scoring, site: str) -> None:
    lm, point = roomy(tiny_model), HookPoint(1, site)  # pyright: ignore
    if scoring == "cloze":  # options of one token would be told apart in the context's own pass
        assert any(len(target) > 1 for target in encode_questions(lm, QUESTIONS, scoring, "magic")[0].targets)
    torch.manual_seed(3)
    for found in traced(lm, scoring, point=point)[:2]:
        shift = torch.randn(found.x.shape, dtype=torch.float64)
        shift[:-2] *= torch.rand(len(shift) - 2, 1) < 0.2  # some places at rest, the last two always moved
        step = 1e-2
        slope = (
            (margin(lm, found.known, step * shift, point) - margin(lm, found.known, -step * shift, point)) / 2 / step
        )
        assert (found.gradient * shift).sum().item() == pytest.approx(slope, rel=2e-3, abs=5e-5)
        assert abs(slope) > 1e-3  # else this test shows nothing


@pytest.mark.parametrize("scoring", SCORINGS)
def test_gradients_do_not_depend_on_the_batch(tiny_llama: LanguageModel, scoring: Scoring) -> None:
    lm = roomy(tiny_llama)
    for alone, together in zip(traced(lm, scoring, batch_size=1), traced(lm, scoring, batch_size=64), strict=True):
        torch.testing.assert_close(alone.gradient, together.gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.x, together.x, rtol=1e-5, atol=1e-6)
        assert alone.places == together.places


def test_a_gradient_leaves_the_model_as_it_was(tiny_llama: LanguageModel) -> None:
    ids = torch.tensor([[1, 5, 9, 11]])
    before = tiny_llama.model(ids).logits
    traced(roomy(tiny_llama), "letter")
    list(iter_gradients(tiny_llama, POINT, encode_known(tiny_llama, QUESTIONS, "cloze", "x"), "cloze", batch_size=2))
    assert torch.equal(tiny_llama.model(ids).logits, before)
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny_llama.model.parameters())


def test_activations_are_cut_from_below_and_the_hook_goes_with_its_block(tiny_model: LanguageModel) -> None:
    def hooks() -> int:  # transformers leaves its own on a model that was ever asked for hidden states
        modules = tiny_model.model.modules()
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    ids, before = torch.tensor([[1, 5, 9, 11]]), hooks()
    with pytest.raises(KeyboardInterrupt), torch.enable_grad(), differentiable(tiny_model, POINT) as found:
        logits = tiny_model.model(ids).logits
        (gradient,) = torch.autograd.grad(logits[0, -1, 7], found[0])
        assert found[0].is_leaf
        assert gradient.abs().sum() > 0
        raise KeyboardInterrupt
    assert hooks() == before
    assert not tiny_model.model(ids).logits.requires_grad


# ---- places -------------------------------------------------------------------------------------


def wanted(prompt: str, question: Question, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that lie within question or options, from the tokenizer's own offsets."""
    spans = []
    for number, text in enumerate((question.question.strip(), *question.choices)):
        label = "" if number == 0 else f"\n{'ABCD'[number - 1]}. "
        if number and label + text not in prompt:
            continue  # cloze lists no options
        start = prompt.index(label + text) + len(label)
        spans.append((start, start + len(text.rstrip(string.punctuation))))
    lists = [
        [place for place, (a, b) in enumerate(offsets) if start - 1 <= a and b <= end and a < b] for start, end in spans
    ]
    lists = [
        [place for place in places if offsets[place][1] > start]
        for places, (start, _) in zip(lists, spans, strict=True)
    ]
    return [*lists[0][1:], *(place for places in lists[1:] for place in places)]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("name", ["llama", "world"])
def test_places_are_the_words_of_question_and_options(
    tiny_llama: LanguageModel, world_llama: LanguageModel, scoring: Scoring, name: str
) -> None:
    lm = roomy({"llama": tiny_llama, "world": world_llama}[name])
    for found in traced(lm, scoring):
        prompt = prompt_of(lm, found.known.question, scoring, "magic").rstrip()
        coded = lm.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        front = 0 if scoring == "chat" else 1
        expected = [front + place for place in wanted(prompt, found.known.question, coded["offset_mapping"])]  # pyright: ignore
        assert found.places == [place for place in expected if place < len(found.known.encoded.context)]
        assert len(found.places) > 3


def test_a_template_that_rewrites_the_question_is_refused(tiny_llama: LanguageModel) -> None:
    lm = roomy(tiny_llama)
    lm.tokenizer.chat_template = "{{ messages[0]['content'] | upper }}\n"
    with pytest.raises(ConfigError, match="rewrites questions"):
        traced(lm, "chat")


# ---- attributions -------------------------------------------------------------------------------


# ---- planted latents ----------------------------------------------------------------------------


def world_questions(name: str, count: int) -> tuple[Question, ...]:
    found = load_questions(f"world:questions/{name}")
    return tuple(item for item in found if half_of(item.fact) == "dev")[:count]


def domain(name: str, role: Role, questions: Sequence[Question]) -> Domain:
    return Domain(name=name, role=role, questions=tuple(questions))


@pytest.fixture(scope="module")
def planted(world_llama: LanguageModel) -> tuple[TopKSAE, Question, tuple[Question, ...]]:
    """An SAE of five latents: 0 causes one answer alone, 1 every answer, 2 and 3 hardly any, 4 never fires.

    Latent 0 fires on one token of the forget question, and its direction is the margin's gradient there. Latents
    1, 2 and 3 fire everywhere; 2 weighs nothing and 3 points the other way, so to clamp it helps the answer.
    """
    (asked,) = world_questions("wizards", 1)
    kept = world_questions("geography", 12)
    known = encode_known(world_llama, [asked], "cloze", "wizards")
    (found,) = iter_gradients(world_llama, POINT, known, "cloze", batch_size=4)
    place = max(found.places, key=lambda token: found.gradient[token].norm().item())
    uphill = found.gradient[place] / found.gradient[place].norm()
    x = found.x[place]
    width = world_llama.d_model
    W_enc, b_enc, W_dec = torch.zeros(width, 5), torch.zeros(5), torch.zeros(5, width)
    W_enc[:, 0], b_enc[0] = 2000 * x / x.square().sum(), -1990.0  # 10 on the token itself, silent on others
    b_enc[1:] = torch.tensor([1.0, 0.1, 1.0, -1.0])
    W_dec[0], W_dec[1], W_dec[2], W_dec[3], W_dec[4] = uphill, 3 * uphill, uphill * 1e-4, -uphill, 9 * uphill
    return TopKSAE.from_weights(W_enc, b_enc, W_dec, torch.zeros(width), k=5), asked, kept


def settings(**given: object) -> FeaturesConfig:
    values = {"model": "tiny-llama", "scoring": "cloze", "ctx_len": 64, "model_batch_size": 16} | given
    return features_config()(**values)  # pyright: ignore[reportArgumentType]


def found_in(
    lm: LanguageModel,
    sae: TopKSAE,
    config: FeaturesConfig,
    forget: Sequence[Domain],
    retain: Sequence[Domain],
    texts: Sequence[Corpus] = (),
) -> Found:
    """The latents that attribution finds with these questions."""
    exams = sure(lm, {"forget": forget, "retain": retain}, config)
    return find(Asking(lm, sae, POINT, config, exams, texts), sae, config, SILENT)


def test_a_latent_that_causes_the_answer_is_found_and_one_that_breaks_others_dropped(
    world_llama: LanguageModel, planted: tuple[TopKSAE, Question, tuple[Question, ...]]
) -> None:
    sae, asked, kept = planted
    forget, retain = [domain("wizards", "forget", [asked])], [domain("geography", "retain", kept)]
    found = found_in(world_llama, sae, settings(), forget, retain)
    assert [*found.scores] == [0]
    assert found.removed == {"not_put_forward": 1, "turns_no_answer": 2, "attribution_max_broken": 1, "loss_added": 0}
    assert found.settings["half"] == "dev"
    assert found.settings["questions"] == {"forget": 1, "retain": 12}


def test_the_planted_latent_is_first_among_those_put_forward(
    world_llama: LanguageModel, planted: tuple[TopKSAE, Question, tuple[Question, ...]]
) -> None:
    sae, asked, _ = planted
    (found,) = iter_gradients(
        world_llama, POINT, encode_known(world_llama, [asked], "cloze", "wizards"), "cloze", batch_size=4
    )
    x, g = found.x[found.places], found.gradient[found.places]
    up, down = attributions(sae, x, g, "+"), attributions(sae, x, g, "-")
    assert up.argmax() == 0
    assert up[0].item() == pytest.approx(10 * g.norm(dim=-1).max().item(), rel=1e-2)
    assert down.argmax() == 3
    assert up[3] < up[1]


def test_a_high_bar_for_broken_questions_keeps_the_harmful_latent(
    world_llama: LanguageModel,
    planted: tuple[TopKSAE, Question, tuple[Question, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the two, the one that fires on less text adds less loss and comes first."""
    monkeypatch.setattr(attribution, "LOSS_TOKENS", 500)
    sae, asked, kept = planted
    forget, retain = [domain("wizards", "forget", [asked])], [domain("geography", "retain", kept)]
    text = load_retain_text(world_llama, settings(retain=("world:corpora/geography",)))
    found = found_in(world_llama, sae, settings(attribution_max_broken=12), forget, retain, text)
    assert [*found.scores] == [0, 1]


def test_a_selection_by_attribution_is_a_selection_like_any_other(
    world_llama: LanguageModel, planted: tuple[TopKSAE, Question, tuple[Question, ...]], tmp_path: Path
) -> None:
    sae, asked, kept = planted
    config = settings(
        run_dir=tmp_path, layer=(1,), forget="world:corpora/wizards", retain=("world:corpora/geography",),
        max_tokens=1500, storage_dtype="fp32", num_features=(3, 1), method=("attribution",),
    )  # fmt: skip
    collect(config, Bench(config))
    found = {reader.fingerprint.role: reader for reader in map(ShardReader, find_shards(tmp_path, str(POINT)))}
    forget, retain = [domain("wizards", "forget", [asked])], [domain("geography", "retain", kept)]
    exams = sure(world_llama, {"forget": forget, "retain": retain}, config, tmp_path)
    made = select(
        found["forget"], {"geography": found["retain"]}, sae, config, name="x/y", weights="ab" * 32,
        ask=lambda: Asking(world_llama, sae, POINT, config, exams),
    )["attribution"]  # fmt: skip
    assert (made.method, made.indices, made.requested, made.candidates) == ("attribution", (0,), 3, 1)
    assert sum(made.filtered.values()) + made.candidates == made.d_sae
    assert made.settings["attribution_clamp"] == -20.0
    assert made.settings["scoring"] == "cloze"
    assert "latents" not in made.settings
    assert made.latents[0].score > 0
    assert str(tmp_path) not in json.dumps(made.to_json())
    assert orders_file(tmp_path, "wizards", "cloze").is_file()
    made.save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json", weights="ab" * 32) == made


def test_only_the_dev_half_is_asked(world_llama: LanguageModel, tmp_path: Path) -> None:
    every = load_questions("world:questions/wizards")[:40]
    assert len({half_of(item.fact) for item in every}) == 2
    exams = sure(world_llama, {"forget": [domain("wizards", "forget", every)]}, settings(), tmp_path)
    assert {known.question.id for known in exams["forget"]} == {
        item.id for item in every if half_of(item.fact) == "dev"
    }


def test_a_model_sure_of_nothing_says_so(world_llama: LanguageModel) -> None:
    asked = [domain("wizards", "forget", world_questions("wizards", 3))]
    with pytest.raises(DataError, match=r"none of the 3 forget questions of the dev half under --scoring letter"):
        sure(world_llama, {"forget": asked, "retain": asked}, settings(scoring="letter"))


def test_questions_must_be_named() -> None:
    with pytest.raises(DataError, match="--retain_questions"):
        load_asked(settings(forget_questions=("world:questions/wizards",)))
    asked = load_asked(
        settings(forget_questions=("world:questions/wizards",), retain_questions=("world:questions/everyday",))
    )
    (forget,), (retain,) = asked["forget"], asked["retain"]
    assert (forget.role, retain.role, retain.name) == ("forget", "retain", "everyday")
    assert forget.questions
