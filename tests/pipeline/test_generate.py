"""``generate``: several prompts, from the line, files and stdin, under several methods; and the same by talking."""

import json

import pytest
from typer.testing import CliRunner

from cli.app import build


@pytest.fixture(scope="module")
def run(new_run):
    return new_run()  # what was evaluated last says what is written: not of a run that others evaluate


@pytest.fixture(scope="module")
def where(run):
    return [*run.where, "--max_new_tokens", "3"]


def said(*args, given=None, code=0):
    result = CliRunner().invoke(build(only="generate"), ["generate", *args], input=given)
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result.stdout if code == 0 else result.output


def told(*args, given=None):
    return json.loads(said(*args, "--json", given=given))["metrics"]


def test_prompts_come_from_line_file_and_stdin_and_are_written_as_each_alone(where, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "The river"}\n')
    flags = [*where, "--temperature", "0"]
    several = told("The wizard", "-", "--prompts", str(tmp_path / "more.jsonl"), *flags, given="Granite\n\nQuartz\r\n")
    assert [each["prompt"] for each in several["prompts"]] == ["The wizard", "Granite", "Quartz", "The river"]
    alone = told("Granite", *flags)
    assert alone == several["prompts"][1] and set(alone["texts"]) == {"baseline", "scale -3 on 24 latents"}


def test_several_methods_write_and_what_they_edited_is_told_with_its_latents(where, run):
    texts = told("The wizard of the north tower keeps", *where, "--methods", "scale,zero")["texts"]
    assert list(texts) == ["baseline", "Scale -3 on 24 latents", "Zero ablation of 24 latents"]
    assert texts["baseline"]["edited"] == []
    for title, one in texts.items():
        assert len(one["edited"]) == one["edited_tokens"] <= one["tokens"] == 3, title
        latents = {int(latent) for each in one["edited"] for latent in each["latents"]}
        assert latents <= set(run.selection.indices)
    assert any(one["edited"] for one in texts.values())


def test_the_table_names_edited_tokens(where):
    shown = said("The wizard of the north tower keeps", *where)
    assert "edited tokens" in shown and "removing the hook restores the baseline" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "there is no prompt"),
        (["x", "--methods", "sclae"], "(did you mean scale?)"),
        (["x", "--chat"], "has no chat template"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_written_is_one_line(where, args, words):
    output = said(*args, *where, code=2)
    assert output.count("error: ") == 1 and words in output.replace("\n", " ")


def test_talking_is_commands_and_answers_until_quit(where):
    lines = "The wizard\n/scale -8\n/nope\n/compare off\nGranite\n/quit\nnever read\n"
    shown = said("--interactive", *where, given=lines)
    assert "next: baseline, scale -8 on 24 latents" in shown and "error: /nope is no command" in shown
    assert "never read" not in shown
    assert [each["prompt"] for each in told("--interactive", *where, given=lines)["prompts"]] == [
        "The wizard",
        "Granite",
    ]
