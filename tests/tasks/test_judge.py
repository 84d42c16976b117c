"""Judges with planted replies: one behind an address of this machine, one a real Llama that names a category."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_forge.errors import ConfigError, DataError, ForgeError, RemoteError
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress, Silent
from sae_forge.results.report import Report
from sae_forge.show.gallery import of_report
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.estimates import pooled
from sae_forge.study.measure import Answers, Touched
from sae_forge.study.settings import eval_config
from sae_forge.tasks import judge as judging
from sae_forge.tasks.engines import judges
from sae_forge.tasks.item import Item
from sae_forge.tasks.judge import Judge
from sae_forge.tasks.rubric import INLP, Category, Rubric, read_rubric
from sae_forge.tasks.task import Asked

EvalConfig = eval_config()
NAMES = ("Explicit", "Thematic", "Accidental", "None")
SECRET = "sk-planted-000111"


@dataclass
class Server:
    """What is sent to it, and what it answers: by default a category by the answer's first letter."""

    url: str = ""
    sent: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    answer: Callable[[str, int], Any] = lambda prompt, times: NAMES[ord(answered(prompt)[:1] or "d") % 4]
    """From a prompt, and how often it was sent before, to a text, or a status with a body."""


def answered(prompt: str) -> str:
    return prompt.partition("What it wrote: ")[2].partition("\n\nReply")[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            assert (self.path, body["model"], body["temperature"]) == ("/v1/chat/completions", "planted", 0)
            with lock:
                before = state.sent.count(prompt)
                state.sent.append(prompt)
                state.keys.add(self.headers.get("Authorization"))
            said = state.answer(prompt, before)
            status, text = said if isinstance(said, tuple) else (200, said)
            told = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text}
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(text if isinstance(text, bytes) else json.dumps(told).encode())

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(judges, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(judges, "LONGEST_WAIT", 0.002)
    monkeypatch.setattr(judges, "TRIES", 3)
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        state.url = f"http://127.0.0.1:{running.server_port}/v1"
        yield state
        running.shutdown()


class Told(Silent):
    """Progress that is written down."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    records = [
        {"prompt": "The wizard"},
        {"question": "Who keeps an owl?"},
        {"prompt": {"prompt": "Granite is", "s": 3}},
    ]
    path = tmp_path / "wizards.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def asked_of(lm: LanguageModel, folder: Path, progress: Progress = SILENT, **settings: Any) -> Asked:
    usual = {"judge_topic": "wizards", "judge_key_variable": "PLANTED_KEY", "max_new_tokens": 3, "run_dir": folder}
    config = EvalConfig(**usual | settings)
    (asked,) = Judge().load(lm, config, half="all", limit=None, progress=progress)
    return asked


def items_of(lm: LanguageModel, asked: Asked) -> list[Item]:
    return asked.task.ask(lm, asked, batch_size=8, done=None)


def estimates(asked: Asked, items: list[Item]) -> dict[str, float]:
    pools = pooled([Answers(asked, tuple(items), Touched(0, 0, 0))])
    return {name: pool.estimate(Bootstrap(100)).value for name, pool in pools.items()}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model writes, whatever it is asked: to be filled by the test."""
    texts: list[str] = []

    def write(lm: Any, prompts: Any, sampling: Any, *, batch_size: int, done: Any = None) -> Any:
        from sae_forge.tasks.engines.generation import Written

        return [Written("", text, len(text.split())) for text in texts]

    monkeypatch.setattr("sae_forge.tasks.engines.generation.write", write)
    return texts


def test_planted_answers_are_counted_and_nothing_is_asked_twice(
    tiny_llama: LanguageModel, server: Server, prompts: str, planted: list[str], tmp_path: Path
):
    planted[:] = ["a wand", "b night", "d"]  # by their first letters Thematic, Accidental, Explicit
    asked = asked_of(tiny_llama, tmp_path, judge=(f"{server.url}#planted",), judge_prompts=(prompts,))
    items = items_of(tiny_llama, asked)
    found = estimates(asked, items)
    assert {name: round(value, 3) for name, value in found.items()} == {
        "judged_explicit": 0.333, "judged_thematic": 0.333, "judged_accidental": 0.333, "judged_none": 0,
        "unreadable": 0, "not_judged": 0, "order_changes": 0, "length_tells": 0, "words": 1.667,
    }  # fmt: skip
    assert [item.text for item in items] == planted
    assert server.keys == {f"Bearer {SECRET}"}
    assert len(server.sent) == 6, "each answer under both orders"
    assert sum(prompt.index("Explicit:") < prompt.index("None:") for prompt in server.sent) == 3
    assert any("Beginning: Granite is\n" in prompt for prompt in server.sent)
    planted[2] = "a wand"  # another row, one of whose answers is new to its prompt
    again = items_of(tiny_llama, asked_of(tiny_llama, tmp_path, judge=asked_judges(asked), judge_prompts=(prompts,)))
    assert len(server.sent) == 8
    assert [item.values["judged_thematic"] for item in again] == [1, 0, 1]
    kept = "".join(path.read_text() for path in tmp_path.rglob("judged/*/*.json"))
    assert SECRET not in kept + json.dumps(asked.protocol)


def asked_judges(asked: Asked) -> tuple[str, ...]:
    return tuple(asked.protocol["judge"]["judges"])


def test_one_that_is_busy_is_asked_again_and_one_that_never_replies_is_counted(
    tiny_llama: LanguageModel, server: Server, prompts: str, planted: list[str], tmp_path: Path
):
    planted[:] = ["alpha", "beta", "gamma"]
    trouble: list[Any] = [(429, "slow down"), (503, "later")]

    def answer(prompt: str, times: int) -> Any:
        if answered(prompt) == "alpha":
            return trouble[times] if times < 2 else "**Category: Explicit** - it names one"
        return (500, f"no, {SECRET}") if answered(prompt) == "beta" else "I cannot say"

    server.answer = answer
    progress = Told()
    said = progress.lines
    judge = {"judge": (f"{server.url}#planted",), "judge_prompts": (prompts,), "judge_at_once": 1}
    asked = asked_of(tiny_llama, tmp_path, progress, **judge)
    items = items_of(tiny_llama, asked)
    alpha, beta, gamma = (item.values for item in items)
    assert (alpha["judged_explicit"], alpha["not_judged"], alpha["unreadable"]) == (1, 0, 0)
    assert beta["not_judged"] == 1
    assert "judged_explicit" not in beta
    assert (gamma["not_judged"], gamma["unreadable"]) == (0, 1)
    found = estimates(asked, items)
    assert found["not_judged"] == pytest.approx(1 / 3)
    assert found["unreadable"] == pytest.approx(1 / 2)
    assert found["judged_explicit"] == 1
    assert "does not reply (HTTP 500" in said[0]
    assert SECRET not in " ".join(said)
    assert sum(answered(prompt) == "beta" for prompt in server.sent) == 6, "three tries of each order"
    server.sent.clear()
    server.answer = lambda prompt, times: "None"
    again = items_of(tiny_llama, asked_of(tiny_llama, tmp_path, progress, **judge))
    assert {answered(prompt) for prompt in server.sent} == {"beta"}, "what has a reply is not asked again"
    assert [item.values["not_judged"] for item in again] == [0, 0, 0]


def test_a_judge_that_is_gone_is_given_up_and_one_that_refuses_ends_it(
    tiny_llama: LanguageModel, server: Server, prompts: str, planted: list[str], tmp_path: Path
):
    planted[:] = ["alpha", "beta", "gamma"]
    server.answer = lambda prompt, times: (200, b"<html>")
    settings = {"judge": (f"{server.url}#planted",), "judge_prompts": (prompts,), "judge_at_once": 1}
    told = Told()
    asked = asked_of(tiny_llama, tmp_path, told, **settings)
    items = items_of(tiny_llama, asked)
    assert [item.values["not_judged"] for item in items] == [1, 1, 1]
    assert len(server.sent) == judges.GIVES_UP * 3, "the rest is not sent"
    assert "in a row without a reply" in told.lines[-1]
    items_of(tiny_llama, asked)
    assert len(server.sent) == judges.GIVES_UP * 3 + judges.GIVES_UP, "of the next row nothing is sent twice"
    for status in (401, 404, 302):
        server.answer = lambda prompt, times, status=status: (status, "no")
        with pytest.raises(RemoteError, match=f"refused: HTTP {status}: .*; check address, model and key") as error:
            items_of(tiny_llama, asked_of(tiny_llama, tmp_path, **settings))
        assert SECRET not in str(error.value)


def test_two_judges_are_compared_and_lengths_are_made_alike(
    tiny_llama: LanguageModel, server: Server, prompts: str, planted: list[str], tmp_path: Path, speaker: Path
):
    planted[:] = ["a word of owls", "b", "a night is long"]
    # the address takes the last category that is listed, so it changes its mind with their order
    server.answer = lambda prompt, times: max(NAMES, key=lambda name: prompt.rfind(f"\n{name}: "))
    both = (f"{server.url}#planted", str(speaker))
    rubric = tmp_path / "ends.toml"
    rubric.write_text(
        'instruction = "{categories}\\n{answer}"\n'
        + "".join(f'[[categories]]\nname = "{name}"\nsays = "it is"\n' for name in NAMES)
    )
    settings = {"judge": both, "judge_prompts": (prompts,), "judge_rubric": (str(rubric),), "judge_words": 2}
    asked = asked_of(tiny_llama, tmp_path, **settings)
    # its text is read by a model that names the category after the last word: owls Thematic, b and long Explicit
    items = items_of(tiny_llama, asked)
    assert [item.values["order_changes"] for item in items] == [1, 1, 1]
    assert [item.values["judged_none"] for item in items] == [0.5] * 3
    assert [item.values["judged_thematic_2"] for item in items] == [1, 0, 0]
    assert [item.values.get("judged_thematic_cut_2") for item in items] == [0, None, 0]
    assert [item.values["judged_explicit_2"] for item in items] == [0, 1, 1]
    found = estimates(asked, items)
    assert found["kappa"] == 0, "one of them says the same of everything"
    assert found["judged_explicit_cut_2"] == 1
    assert [one.name for one in asked.measures if one.shown == "always"][:4] == [one.key for one in INLP.categories]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers write nothing, so that what it says next hangs on the last word alone."""
    folder = tmp_path_factory.mktemp("speaker")
    words = ["<pad>", "<s>", "</s>", "?", *NAMES, "owls", "b", "long", "word", "night"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    follows = {"owls": "Thematic", "word": "Explicit", "night": "Explicit", "b": "Explicit", "long": "Explicit"}
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, : len(words)] = torch.eye(len(words), 16)[:, : len(words)]
        for number, word in enumerate(words):
            model.lm_head.weight[words.index(follows.get(word, "</s>")), number] = 1.0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("Explicit", 0), (" none.\n", 3), ("**Thematic**", 1), ("Category: Accidental\n", 2),
        ("Explicit - it names", 0),
        ("<think>Thematic? no.</think>\nNone", 3), ("The text is about owls.\n\nAnswer: Explicit", 0),
        ("none of the topic is in it", None), ("It is not explicit.", None), ("Explicitly", None), ("", None),
        ("<think>Explicit", None), ("Explicit or Thematic", None), ("🙂", None),
    ],
)  # fmt: skip
def test_a_reply_names_one_category_or_is_unreadable(reply: str, number: int | None):
    assert INLP.verdict(reply) == number


def test_of_two_names_that_begin_alike_the_longer_is_read():
    both = tuple(Category(name=name, says="it is") for name in ("Partly", "Partly-wrong"))
    assert [Rubric(name="x", categories=both).verdict(said) for said in ("Partly", "Partly-wrong: since")] == [0, 1]


def test_a_category_called_as_another_measure_is_refused():
    scored = tuple(Category(name=name, says="it is", score=1) for name in ("Score", "Other"))
    with pytest.raises(ConfigError, match="two measures the name judged_score"):
        judging.measures_of(Rubric(name="x", categories=scored), ("m",), None)


def test_the_end_of_a_long_reply_is_kept_and_two_who_ask_at_once_have_one(tmp_path: Path):
    thought = f"<think>{'it is so long. ' * 500}</think>\n"

    class Planted:
        identity = "planted"

        def __init__(self, said: str, before: judges.Asked | None = None) -> None:
            self.said, self.before = said, before

        def replies(self, prompts: Any, keep: Callable[[str, str], None], progress: Progress) -> None:
            if self.before is not None:  # another rank has the same to ask
                self.before.replies(prompts, progress)
            for prompt in prompts:
                keep(prompt, self.said)

    first = judges.Asked(Planted(thought + "Thematic"), tmp_path)
    (reply,) = judges.Asked(Planted("None", first), tmp_path).replies(["a"], SILENT)
    assert reply is not None and len(reply) < 2100 and INLP.verdict(reply) == 1
    assert first.replies(["a"], SILENT) == [reply]


def test_a_key_may_end_in_a_new_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLANTED_KEY", SECRET + "\n")
    how = {"tokens": 8, "key_variable": "PLANTED_KEY", "at_once": 1, "batch_size": 1, "device": "cpu"}
    judge = judges.judge_of("https://host/v1#m", **how)
    assert isinstance(judge, judges.Endpoint) and judge.key == SECRET


def test_a_rubric_with_scores_is_read_from_either_format(tmp_path: Path):
    categories = [{"name": "Fluent", "says": "well written", "score": 2}, {"name": "Broken", "says": "not", "score": 0}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    (tmp_path / "a.toml").write_text(
        "".join(f"[[categories]]\n{''.join(f'{k} = {v!r}' + chr(10) for k, v in one.items())}" for one in categories)
    )
    assert read_rubric(tmp_path / "a.json") == read_rubric(tmp_path / "a.toml")
    names = [one.name for one in judging.measures_of(read_rubric(tmp_path / "a.json"), ("x",), None)]
    assert names[:3] == ["judged_fluent", "judged_broken", "judged_score"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judge": ("m",)}, "give --judge_prompts too"),
        ({"judge_prompts": ("p",)}, "give --judge too"),
        ({"judge": ("m", "m"), "judge_prompts": ("p",)}, "twice agrees with itself"),
        ({"judge": ("a", "b", "c"), "judge_prompts": ("p",)}, "give one judge or two"),
        ({"judge": ("ftp://x#m",)}, "give https://HOST/v1#MODEL"),
        ({"judge": ("https://x/v1",)}, "give https://HOST/v1#MODEL"),
        ({"judge": ("https://me:pass@x/v1#m",)}, "no login and no query"),
        ({"judge": ("http://example.org/v1#m",)}, "a key is sent over https alone"),
        ({"judge": ("m",), "judge_topic": None}, "say which with --judge_topic"),
    ],
)
def test_what_is_no_judge_is_refused_in_one_line(
    settings: dict[str, Any], words: str, tiny_llama: LanguageModel, prompts: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    alone = settings in ({"judge": ("m",)}, {"judge_prompts": ("p",)})
    with pytest.raises(ConfigError, match=words) as error:
        asked_of(tiny_llama, tmp_path, **({} if alone else {"judge_prompts": (prompts,)}) | settings)
    assert "pass" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[categories]]\nname = 'A'\n", "category 1 should have a name, what it says"),
        ("categories = 3\n", r"give \[\[categories\]\]"),
        ("[[categories]]\nname = 'A'\nsays = 'x'\n", "give 2 to 26 categories"),
        ("a = 1\n[[categories]]\nname = 'A'\nsays = 'x'\n", "sets 'a'"),
        ("instruction = '{answer}'\nTWO", "instruction has no {categories}"),
        ("instruction = '{answer} {categories} {x}'\nTWO", "instruction has {x}; it may have"),
        ("instruction = '{answer:>9} {categories}'\nTWO", "no format behind a name"),
        ("instruction = '{'\nTWO", "write {{ for a brace"),
        ("TWO\nscore = 1\n", "a score to every category or to none"),
        ("TWO\nscore = nan\n", "score should be a number"),
        ("TWO\n\xff", "not TOML"),
    ],
)
def test_a_rubric_that_is_none_says_where(text: str, words: str, tmp_path: Path):
    two = "[[categories]]\nname = 'A'\nsays = 'x'\n[[categories]]\nname = 'B'\nsays = 'y'\n"
    path = tmp_path / "rubric.toml"
    path.write_bytes(text.replace("TWO", two).encode("latin1"))
    with pytest.raises(ConfigError, match=words) as error:
        read_rubric(path)
    assert "rubric.toml" in str(error.value)


def test_a_record_without_a_prompt_is_named(tiny_llama: LanguageModel, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": {"text": "b"}}\n')
    with pytest.raises(DataError, match=r"x\.jsonl line 2 needs 'prompt' as text"):
        asked_of(tiny_llama, tmp_path, judge=("m",), judge_prompts=(str(path),))


def test_every_row_of_a_report_is_judged_and_drawn(
    plugged_run: Any, server: Server, prompts: str, monkeypatch: pytest.MonkeyPatch
):
    settings = {
        "judge": (f"{server.url}#planted",), "judge_prompts": (prompts,), "judge_topic": "wizards", "random_seeds": 3,
        "methods": ("scale", "random"), "controls": ("isotropic",), "tasks": ("judge",), "max_new_tokens": 3,
        "run_dir": plugged_run.folder, "judge_key_variable": "PLANTED_KEY",
    }  # fmt: skip
    calls = iter(range(10**6))
    server.answer = lambda prompt, times: (400, "too long") if next(calls) == 0 else NAMES[len(prompt) % 4]
    report: Report = plugged_run.evaluate(**settings).report
    assert [row.name for row in report.rows] == ["baseline", "scale", "random", "random", "random"]
    for row in report.rows:
        told = row.groups["judge"]
        assert sum(told[one.key].value for one in INLP.categories) == pytest.approx(1)
    assert report.rows[0].groups["judge"]["not_judged"].value == pytest.approx(1 / 6)
    assert report.rows[1].change is not None
    assert "judged_explicit" in report.rows[1].change.groups["judge"]
    assert report.protocol["judge"]["rubric"] == "inlp"
    (picture,) = [one for one in of_report(report) if one.name == "judge"]
    assert picture.draw(report, "png") == picture.draw(report, "png")
    assert any(control.groups["judge"] for control in report.controls)


def test_a_damaged_reply_is_named(tmp_path: Path, server: Server):
    judge = judges.Asked(judges.Endpoint.of(f"{server.url}#planted", tokens=8, key="", at_once=1), tmp_path)
    assert judge.replies(["a"], SILENT) == ["Explicit" if ord("d") % 4 == 0 else "None"]
    (path,) = tmp_path.rglob("*.json")
    path.write_text(path.read_text().replace("reply", "ripple"))
    with pytest.raises(ForgeError, match=path.name):
        judge.replies(["a"], SILENT)
