"""Reports as types: read strictly, written back the same, those of 0.1 too; what any measure says of itself is said."""

import io
import json
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import estimate, filled
from rich.cells import cell_len
from rich.console import Console

from sae_forge.errors import DataError
from sae_forge.results.claims import claims
from sae_forge.results.report import FORMAT, Report, load_report
from sae_forge.results.sheets import Sheet, overview, sheets
from sae_forge.results.verdict import verdict_sheet
from sae_forge.show import gallery
from sae_forge.show.markdown import cell, titled
from sae_forge.show.terminal import tables

OLD = Path(__file__).with_name("report-0.1.json")
"""A report of version 0.1 on tiny-llama: three of its domains, two kinds of its controls, numbers to six digits."""


@pytest.fixture(scope="module")
def old() -> Report:
    return load_report(OLD)


# ---- version 0.1 --------------------------------------------------------------------------------


def test_a_report_of_0_1_keeps_every_number_and_is_then_one_of_today(old: Report):
    record, written = json.loads(OLD.read_text()), old.to_json()
    assert {**written, **record, "methods": written["methods"]} == written
    for row, now in zip(record["methods"], written["methods"], strict=True):
        assert row.items() <= now.items()
    assert (written["format"], [task["name"] for task in written["tasks"]]) == (
        FORMAT, ["questions", "completions", "held_out", "prompts"],
    )  # fmt: skip
    assert Report.from_json(json.loads(json.dumps(written))) == old


def test_the_claims_of_a_report_of_0_1_are_those_that_version_made(old: Report):
    """And the name of the selection, which that version did not say; a share is followed by a share now."""
    named = "The latents are those of the selection inlp, in its order."
    in_one_unit = [line.replace("edit, 0.00 [0.00, 0.00] with", "edit, 0% [0, 0] with") for line in old.claims]
    assert [line for line in claims(old) if line != named] == in_one_unit
    assert named in claims(old) and len(old.claims) == 9


def test_its_rows_are_put_into_words(old: Report):
    assert [row.title for row in old.rows if not row.is_control] == [
        "baseline", "Scale -3 on 200 latents", "Zero ablation of 200 latents",
    ]  # fmt: skip
    assert [row.name for row in old.rows if row.at_rest] == ["zero"]


# ---- notebooks ----------------------------------------------------------------------------------


def test_a_frame_holds_every_estimate_once_beside_its_change(old: Report):
    frame = old.to_pandas()
    assert not frame.duplicated(["title", "control", "seed", "where", "name", "measure"]).any()
    (row,) = [one for one in old.rows if one.name == "scale"]
    assert row.change is not None
    line = frame[(frame["method"] == "scale") & (frame["name"] == "forget") & (frame["measure"] == "accuracy")].iloc[0]
    wanted, changed = row.roles["forget"].estimates["accuracy"], row.change.roles["forget"].estimates["accuracy"]
    assert (line["value"], line["low"], line["high"]) == (wanted.value, wanted.low, wanted.high)
    assert (line["change"], line["change_low"], line["change_high"]) == (changed.value, changed.low, changed.high)
    assert frame[frame["kind"] == "baseline"]["change"].isna().all() and set(frame["control"].dropna()) == {
        row.settings["kind"] for row in old.rows if row.is_control
    }
    measured = sum(
        len(cell.estimates) for row in old.rows for cells in (row.domains, row.roles) for cell in cells.values()
    )
    assert len(frame) == measured + sum(len(group) for row in old.rows for group in row.groups.values())


def test_a_notebook_shows_the_overview_and_the_claims_and_no_markup_of_others(old: Report):
    shown = replace(old, claims=("<b>all gone</b>",))._repr_html_()
    assert all(f"<td>{row[0]}</td>" in shown for row in overview(old).rows)
    assert "&lt;b&gt;all gone&lt;/b&gt;" in shown and "<b>" not in shown


# ---- a narrow terminal --------------------------------------------------------------------------


def printed(sheet: Sheet, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    for part in tables(sheet, width):
        console.print(part, markup=False)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_of_a_table_is_wider_than_the_terminal_and_no_cell_is_lost(old: Report, width: int):
    for sheet in (overview(old), *sheets(old), verdict_sheet(old)):
        lines = printed(sheet, width)
        assert max(map(cell_len, lines)) <= width, sheet.title
        words = re.sub(r"[^\w.+-]", "", "".join(lines))
        for row in sheet.rows:
            assert all(re.sub(r"[^\w.+-]", "", cell.split(" [")[0]) in words for cell in row[1:]), row


def test_roles_stand_before_the_domains_of_those_that_have_several(old: Report):
    columns = overview(old).columns
    roles = {
        role: [name for name in old.domain_names if old.domains[name].role == role] for role in ("forget", "retain")
    }
    assert columns[1] == f"{roles['forget'][0]} (forget)" if len(roles["forget"]) == 1 else "forget (2 domains)"
    for role, names in roles.items():
        if len(names) > 1:
            assert columns.index(f"{role} ({len(names)} domains)") < columns.index(f"{names[0]} ({role})")


# ---- strictness ---------------------------------------------------------------------------------


FLAWS = {
    "domains: it is missing": lambda r: r.pop("domains"),
    "extra: there is no such key": lambda r: r.update(extra=1),
    "methods.0.kind: it should be 'baseline', 'hook' or 'weights', not 'magic'": lambda r: r["methods"][0].update(
        kind="magic"
    ),
    "methods.1.settings: it should be an object, not 3": lambda r: r["methods"][1].update(settings=3),
    "methods.1.roles.forget.accuracy.low: it should be a valid number, not 'x'": (
        lambda r: r["methods"][1]["roles"]["forget"]["accuracy"].update(low="x")
    ),
    "methods.1.loss.retain.high: it is missing": lambda r: r["methods"][1]["loss"]["retain"].pop("high"),
    "domains.wizards.items: it should be a valid integer, not True": (
        lambda r: r["domains"]["wizards"].update(items=True)
    ),
    "tasks.0.measures.0.better: it should be 'up', 'down' or 'neither', not 'sideways'": (
        lambda r: r["tasks"][0]["measures"][0].update(better="sideways")
    ),
    "methods: the first is not the baseline": lambda r: r["methods"].pop(0),
    "it has format 99": lambda r: r.update(format=99),
}


@pytest.mark.parametrize("said", FLAWS)
def test_what_is_wrong_is_named_by_its_place_in_one_line(old: Report, said: str):
    record = deepcopy(old.to_json())
    FLAWS[said](record)
    with pytest.raises(DataError) as refused:
        Report.from_json(record)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("record", [[], 3, None, {}, {"methods": 1}, {"methods": [1]}, {"methods": [{}]}])
def test_what_is_no_report_is_refused(record: Any):
    with pytest.raises(DataError, match=r"methods: it|it should be an object"):
        Report.from_json(record)


def test_a_file_that_holds_none_is_named(tmp_path: Path):
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(DataError, match=r"eval\.json is not an eval report: methods: it should be a list of objects"):
        load_report(tmp_path / "eval.json")


def test_reading_a_report_loads_no_torch():
    code = "import sys, sae_forge.results.claims, sae_forge.results.sheets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- measures of any task -----------------------------------------------------------------------

RIDDLES = {
    "name": "riddles", "title": "Riddles", "group": None,
    "measures": [
        {"name": "solved", "words": "riddles solved", "better": "up", "chance": 0.5},
        {"name": "hidden", "words": "what no one sees", "shown": "in the file"},
    ],
}  # fmt: skip
POEMS = {
    "name": "poems", "title": "Poems", "group": "poems",
    "measures": [{"name": "feet", "words": "feet a line", "unit": "x 10", "digits": 1, "note": "5 is a pentameter"}],
}  # fmt: skip


def riddled(value: float, *, paired: bool = True) -> Report:
    """One edit that brought a strange measure from 0.9 to ``value``, with a control that did half of that."""

    def cells(number: float) -> dict[str, Any]:
        return {"forget": {"solved": estimate(number, 0.1), "hidden": estimate(0.5)}}

    named = {"domains": {"owls": cells(0.9)["forget"]}, "loss": {}, "generation": {}}
    change = {"roles": {"forget": {"solved": estimate(value - 0.9, 0.1)}}, "loss": {}, "generation": {}}
    change |= {"poems": {"feet": estimate(-1.0, 0.5)}} if paired else {}
    spread = {"mean": 0.7, "min": 0.65, "max": 0.75}
    report = filled({
        "format": FORMAT, "left_out": {}, "protocol": {}, "tasks": [RIDDLES, POEMS],
        "domains": {"owls": {"role": "forget", "items": 4}},
        "methods": [
            {"name": "baseline", "title": "baseline", "kind": "baseline", "roles": cells(0.9), **named,
             "poems": {"feet": estimate(5.0)}},
            {"name": "hush", "title": "Hush", "settings": {"value": 2.0}, "roles": cells(value), **named,
             "poems": {"feet": estimate(4.0)}, "change": change},
        ],
        "controls": [{
            "settings": {"of": "hush", "value": 2.0, "kind": "isotropic"}, "seeds": [0, 1],
            "roles": {"forget": {"solved": spread}},
            "edit_minus_control": {"forget": {"solved": estimate(value - 0.7, 0.1)}},
        }],
    })  # fmt: skip
    return replace(report, claims=tuple(claims(report)))


def test_a_measure_is_said_with_its_change_its_chance_and_its_control():
    lines = riddled(0.2).claims
    (line,) = (line for line in lines if line.startswith("  Riddles solved: "))
    assert "forget fell from 0.90 to 0.20 [0.10, 0.30], 0.30 from guessing (0.5)" in line
    assert line.endswith(", under random controls 0.65 to 0.75.")
    assert "  Poems, x 10: feet a line fell from 5.0 to 4.0 [4.0, 4.0]." in lines
    (control,) = (line for line in lines if "isotropic" in line)
    assert "forget riddles solved from 0.90 to 0.70 (0.65 to 0.75). The edit goes further by 0.50" in control
    assert not any("no one sees" in line for line in lines)


def test_no_measurable_change_is_not_called_one():
    (line,) = (line for line in riddled(0.88).claims if line.startswith("  Riddles solved"))
    assert "forget went from 0.90 to 0.88" in line and "no measurable change" in line
    (line,) = (line for line in riddled(0.55).claims if line.startswith("  Riddles solved"))
    assert "not told apart from guessing (0.5)" in line


def test_what_has_no_paired_change_is_said_with_what_one_must_know():
    lines = riddled(0.2, paired=False).claims
    assert "  Poems, x 10: feet a line is 4.0 [4.0, 4.0] and was 5.0, where 5 is a pentameter." in lines


def test_what_is_printed_anywhere_is_one_sheet():
    report = riddled(0.2)
    shown = overview(report)
    assert shown.columns == ("method", "owls (forget)", "feet a line")
    assert shown.rows[1] == ("hush value 2", "0.90 [0.80, 1.00]", "4.0 [4.0, 4.0]")
    assert [sheet.title for sheet in sheets(report)] == ["Riddles solved", "Poems, x 10"]
    assert "| hush value 2 | 4.0 [4.0, 4.0] |" in titled(list(sheets(report))[1])
    (printed,) = tables(shown, 80)
    assert [str(column.header) for column in printed.columns] == ["method", "owls\n(forget)", "feet a line"]
    assert list(printed.columns[1].cells)[1] == "0.90\n[0.80, 1.00]"


# ---- gallery and cells --------------------------------------------------------------------------


def test_a_picture_is_drawn_where_there_is_something_to_show(old: Report):
    assert [picture.name for picture in gallery.of_report(old)] == ["accuracy", "logprob"]
    assert [picture.name for picture in gallery.of_report(riddled(0.2))] == ["solved"]
    more = [replace(old.rows[1], name=name) for name in ("a", "b")]
    many = replace(old, rows=(*old.rows, *more))
    assert [picture.name for picture in gallery.of_report(many)] == ["accuracy", "logprob", "trade_off"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0.26 [0.20, -0.31]", "0.26 [0.20, -0.31]"),
        ("[1, 2](http://evil)", r"\[1, 2\](http://evil)"),
        ("a|b\n[x](y) <i> `c` *d*", r"a\|b \[x\](y) \<i\> \`c\` \*d\*"),
    ],
)
def test_a_cell_keeps_its_interval_and_nothing_else_that_is_markup(text: str, written: str):
    assert cell(text) == written
