"""A conversation: what is in force is what is said to be, commands change it, and nothing of it stays on the model."""

from dataclasses import replace
from pathlib import Path

import pytest

from sae_forge.errors import ConfigError, DataError
from sae_forge.interventions.apply import attached
from sae_forge.live.conversation import COMMANDS, Conversation
from sae_forge.live.session import Session
from sae_forge.live.subjects import ALL, BASELINE, Subjects
from sae_forge.methods.subjects import Edited
from sae_forge.results.report import load_report
from sae_forge.tasks.engines.generation import Sampling

REPORT = Path(__file__).parents[1] / "results" / "report-0.1.json"
SAMPLING = Sampling(max_new_tokens=5, temperature=0)


@pytest.fixture
def subjects(plugged_run):
    return Subjects(plugged_run.materials(num_features=(5,)))


@pytest.fixture
def talk(subjects):
    return Conversation(subjects, SAMPLING)


def said(conversation, line):
    """What was written under each title."""
    texts: dict[str, str] = {}
    for title, token in conversation.answer(line):
        texts[title] = texts.get(title, "") + token.piece * token.written
    return texts


def hooks(lm):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


@pytest.mark.slow
def test_it_answers_under_what_is_said_to_be_in_force(talk, plugged_run):
    (title,) = talk.edits
    assert talk.titles == (title,) and title == "scale -3 on 24 latents"
    subject = talk.edits[title]
    with attached(plugged_run.lm, subject.edits) as log:
        wanted = [token for token in Session(plugged_run.lm, log).stream(["The wizard"], SAMPLING) if token.written]
    assert said(talk, "The wizard") == {title: "".join(token.piece for token in wanted)}
    assert talk.obey("/edit") == f"next: {BASELINE}" and set(said(talk, "The wizard")) == {BASELINE}
    assert talk.obey("/compare on") == f"next: {BASELINE}"
    assert talk.obey("/edit on") == f"next: {BASELINE}, {title}" and len(said(talk, "The wizard")) == 2


def test_commands_change_scale_latents_and_methods(talk, plugged_run):
    chosen = plugged_run.selection.indices
    assert talk.obey("/scale -8") == "next: scale -8 on 24 latents"
    assert talk.obey("/latents 3") == "next: scale -8 on 3 latents" and talk.latents == chosen[:3]
    assert talk.obey("/latents 7,") == "next: scale -8 on 1 latent" and talk.latents == (7,)
    (subject,) = talk.edits.values()
    assert subject.edits[0].latents == (7,)
    assert talk.obey("/methods zero, clamp").startswith("next: Zero ablation of 5 latents, clamp of 5 latents")
    assert talk.obey("/tokens 2") == "at most 2 tokens are written" and talk.sampling.max_new_tokens == 2
    assert all(command.words.startswith(f"/{name}") for name, command in COMMANDS.items())
    assert len(talk.obey("/help").splitlines()) == len(COMMANDS)
    assert talk.obey("hello /help") is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nope", "/nope is no command; /help lists them"),
        ("/scale", "give a number"),
        ("/scale nan", "give a finite number"),
        ("/latents", "how many of the 24 selected"),
        ("/latents 25", "24 are selected; for latent 25 alone: 25,"),
        ("/latents 280,", "latent 280 is outside an SAE of 280 latents"),
        ("/methods", "name some"),
        ("/methods sclae", r"no such method \(did you mean scale\?\)"),
        ("/tokens 0", "how many to write"),
        ("/edit maybe", "give on, off or nothing"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(talk, line, words):
    before = (talk.titles, talk.latents, talk.factor, talk.sampling)
    with pytest.raises(ConfigError, match=words):
        talk.obey(line)
    assert (talk.titles, talk.latents, talk.factor, talk.sampling) == before


def test_an_answer_that_is_not_heard_out_leaves_no_edit_and_no_turn(talk, plugged_run):
    before = hooks(plugged_run.lm)
    answer = talk.answer("The wizard")
    next(answer)
    assert hooks(plugged_run.lm) > before
    answer.close()
    assert hooks(plugged_run.lm) == before and talk.turns == []


def test_a_chat_goes_on_from_what_was_answered(subjects, monkeypatch):
    tokenizer = subjects.materials.lm.tokenizer
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:"
    monkeypatch.setattr(tokenizer, "chat_template", template, raising=False)
    talk = Conversation(subjects, SAMPLING, chat=True)
    (first,) = said(talk, "The wizard").values()
    said(talk, "Granite")
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2 and talk.turns[1]["content"] == first
    read = "".join(token.piece for _, token in talk.answer("x") if not token.written)
    assert first in read and read.endswith("user: x\nassistant:")
    talk.obey("/new")
    assert talk.turns == []


# ---- subjects -----------------------------------------------------------------------------------


def test_a_method_has_the_settings_it_was_measured_at(plugged_run):
    materials = plugged_run.materials(num_features=(5,))
    subjects = Subjects(materials, load_report(REPORT))
    assert list(subjects.named(["scale", BASELINE])) == ["Scale -3 on 200 latents", BASELINE]
    assert list(subjects.named(["clamp"])) == list(Subjects(materials).named(["clamp"])), "it was not measured"
    assert list(subjects.named([ALL])) == ["Scale -3 on 200 latents", "Zero ablation of 200 latents"]
    assert all(isinstance(one, Edited) for one in Subjects(materials).named([ALL]).values())


def test_a_latent_that_was_measured_alone_is_no_setting_of_its_method(plugged_run):
    report = load_report(REPORT)
    scaled = next(row for row in report.rows if row.name == "scale")
    alone = replace(scaled, settings={**scaled.settings, "num_features": 1, "latent": 3})
    subjects = Subjects(plugged_run.materials(num_features=(5,)), replace(report, rows=(*report.rows, alone)))
    assert list(subjects.named(["scale"])) == ["Scale -3 on 200 latents"]


def test_a_method_that_lacks_what_it_is_made_from_says_so(plugged_run):
    with pytest.raises(DataError, match="clamp writes values relative"):
        Subjects(plugged_run.materials(bare=True)).named(["clamp"])


def test_a_wrapped_method_is_named_by_its_parts(plugged_run):
    (title,) = Subjects(plugged_run.materials(num_features=(5,))).named(["scale+quantised"])
    assert title.startswith("Scale -3 on 5 latents, ")
