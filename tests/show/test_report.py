"""Reports say what the numbers allow, escape what they are given, and draw the same picture every time."""

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from reports import estimate, filled

from sae_forge.errors import BackendError
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.features.snippets import Snippet
from sae_forge.results.claims import REVERSIBLE, headlines
from sae_forge.results.measure import Measure
from sae_forge.results.pooled import headline, pool, pooled, trade_offs
from sae_forge.results.report import Report
from sae_forge.results.sheets import overview
from sae_forge.show import plots
from sae_forge.show.html import Section, page, write_page

HOSTILE = """<script>alert(1)</script> " onload='x' &amp; </table><img src=http://evil/x.png>"""
VOID = {"meta", "img", "br"}


def method(name: str, accuracies: list[float], *, seed: int | None = None, **settings: Any) -> dict[str, Any]:
    names = ("wizards", "minerals", "dragons")
    measured = zip(names, accuracies, strict=True)
    return {
        "name": name,
        "kind": {"baseline": "baseline", "rmu": "weights"}.get(name, "hook"),
        "settings": settings,
        "seed": seed,
        "domains": {domain: {"accuracy": estimate(value), "logprob": estimate(-1.5)} for domain, value in measured},
        "loss": {"forget": estimate(2.0), "retain": estimate(1.0)},
        "edited_share": {"forget": 0.3, "retain": 0.004},
        "generation": {"distinct_3": estimate(0.9)},
    }


def told(*methods: dict[str, Any]) -> dict[str, Any]:
    roles = {"wizards": "forget", "minerals": "retain", "dragons": "neighbour"}
    named = {name: {"role": role, "items": 240} for name, role in roles.items()}
    return {
        "domains": named,
        "methods": list(methods),
        "claims": ["forget questions fell.", "  Side effects: none.", REVERSIBLE],
    }


def report(*methods: dict[str, Any]) -> Report:
    return filled(told(*methods))


METRICS = told(
    method("baseline", [0.99, 0.98, 0.97]),
    method("scale", [0.26, 0.98, 0.96], scale=-3.0, num_features=100),
    method("scale", [0.60, 0.98, 0.97], scale=-1.0, num_features=100),
    method("zero", [0.97, 0.98, 0.97], num_features=100),
    *(
        method("random", [0.8 + 0.05 * seed, 0.7, 0.6], seed=seed, of="scale", scale=-3.0, num_features=100, kind=kind)
        for kind in ("isotropic", "places")
        for seed in range(3)
    ),
)
TABLE = filled(METRICS)
RMU, DSG = (method(name, [0.4, 0.97, 0.97], coefficient=20.0) for name in ("rmu", "dsg"))
MAPPED = report(*METRICS["methods"], RMU, DSG)
ACCURACY = Measure(name="accuracy", words="question accuracy", chance=0.25)
ISOTROPIC = "random isotropic for scale -3, 100 latents (3 seeds)"


def tried(forget: float, utility: float, **settings: Any) -> dict[str, Any]:
    return {"settings": settings, "forget": forget, "utility": utility, "neighbour": None, "alignment": 0.5}


def tuned(*points: dict[str, Any], best: dict[str, Any] | None) -> dict[str, Any]:
    """A method's part of a sweep, with its first point chosen."""
    return {
        "configurations": len(points), "points": list(points), "front": list(points[:2]), "chosen": points[0],
        "best_at": {"utility_99": best, "utility_1pt": points[0], "neighbours_99": points[1]},
        "saebench_score": 0.6875, "hypervolume": 0.4321, "best_alignment": 0.5, "rule": "utility_1pt", "end": None,
    }  # fmt: skip


def swept(tried_methods: int, **more: Any) -> Report:
    """A report with a sweep of that many methods, and with other keys."""
    points = tried(0.3125, 0.96, scale=-4.0, num_features=50), tried(0.5, 0.98, scale=-2.0, num_features=50)
    found = {f"method {number}": tuned(*points, best=points[1] if number else None) for number in range(tried_methods)}
    base, floors = tried(0.99, 0.98), {"utility_99": 0.97, "utility_1pt": 0.97}
    swept = {
        "sweep": {"half": "dev", "domains": {}, "base": base, "floors": floors, "methods": found},
        "left_out": {"refusal_clamp": f"the selection has {HOSTILE}"},
    }
    return filled(METRICS | swept | more)


STATS = CorpusStats(5, 0.1, 0.2, 3.0)
SNIPPET = Snippet(f"{HOSTILE} «the {HOSTILE}» end » « x", 3.0, 1, 2)
LATENT = SelectedLatent(7, 0.5, 9.0, 0.1, 0.1, 0.1, 0.0, STATS, {}, (SNIPPET,))
SELECTION = Selection(
    "s", "w", 96, "inlp", {}, Corpus("saga", 9, "ab", 1), {}, 1, 2, {"min_freq": 3}, (LATENT,), {}
)  # fmt: skip


@pytest.mark.parametrize("said", ["4-bit (Q4_1 GGUF)", ""])
def test_table_and_page_say_that_the_weights_were_rounded_and_nothing_where_they_were_not(said):
    rounded = filled(METRICS | {"protocol": {"precision": said}})
    shown = page("a model", [section(report=rounded, pictures={})])
    if said:
        assert f"; a model of {said} weights" in overview(rounded).title
        assert f"The model's weights are {said}: " in "".join(parsed(shown).text)
    else:
        assert "-bit" not in overview(rounded).title + shown


# ---- estimates ----------------------------------------------------------------------------------


def test_seeds_of_a_control_are_pooled_to_their_mean_and_widest_interval():
    random = next(entry for entry in pooled(TABLE) if entry.is_control)
    assert len(random.rows) == 3
    estimate = random.domain("wizards", "accuracy")
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.85, 0.77, 0.93))
    assert random.label == ISOTROPIC
    assert pool([None, None]) is None


def test_the_headline_is_each_method_at_its_first_setting():
    assert [entry.label for entry in headline(TABLE)][:3] == ["baseline", "scale -3, 100 latents", "zero 100 latents"]
    assert len(pooled(TABLE)) == 6


def test_utility_is_the_worst_domain_that_should_be_kept():
    points = {point.pooled.label: point for point in trade_offs(TABLE, "accuracy")}
    assert points[ISOTROPIC].utility.value == pytest.approx(0.6)
    assert points["scale -3, 100 latents"].forget.value == 0.26
    assert TABLE.domain_names == ["wizards", "dragons", "minerals"]


# ---- the page -----------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Tags in order; fails on one that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Outline:
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    return outline


def section(**changes: Any) -> Section:
    given: dict[str, Any] = {
        "title": "blocks.1.hook_resid_post", "train": {"fvu": 0.0112, "steps": 1200}, "selection": SELECTION,
        "report": TABLE, "pictures": {"Accuracy by domain": plots.training_curve([{"step": 0, "fvu": 1.0}])},
        "settings": {"train": {"k": 16, "layer": [1], "lr": None}},
    }  # fmt: skip
    return Section(**{**given, **changes})


def test_the_page_escapes_hostile_text_wherever_it_comes_from():
    hostile = told(
        method("baseline", [0.9, 0.9, 0.9]), method("scale", [0.3, 0.9, 0.9], scale=-1.0, **{HOSTILE: HOSTILE})
    )
    hostile["domains"] = {HOSTILE: hostile["domains"]["wizards"], **hostile["domains"]}
    for row in hostile["methods"]:
        row["domains"][HOSTILE] = row["domains"]["wizards"]
    text = page(
        HOSTILE,
        [
            section(
                title=HOSTILE, report=filled(hostile), train={HOSTILE: HOSTILE},
                pictures={HOSTILE: b"png"}, settings={HOSTILE: {HOSTILE: [HOSTILE]}},
            ),
            section(),
        ],
    )  # fmt: skip
    outline = parsed(text)
    assert {tag for tag, _ in outline.seen} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "section", "p", "div", "table",
        "caption", "thead", "tbody", "tr", "th", "td", "mark", "figure", "img", "figcaption", "dl", "dt", "dd",
        "details", "summary", "footer",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in outline.seen for name in attributes)
    assert HOSTILE in "".join(outline.text)


def test_the_page_needs_nothing_from_elsewhere():
    text = page("tiny-llama", [section(selection=None)])
    outline = parsed(text)
    assert all(attributes["src"].startswith("data:") for tag, attributes in outline.seen if tag == "img")
    assert not re.search(r"https?:|@import|url\(|<link|<script|/tmp|/home", text)


def test_the_page_opens_with_the_verdict_the_claims_and_that_the_hook_can_be_removed():
    words = "".join(parsed(page("tiny-llama", [section()])).text)
    first = words.index("forget questions fell.")
    assert (
        words.index("Unlearning report: tiny-llama")
        < words.index("Forgotten?")
        < first
        < words.index(REVERSIBLE)
        < words.index("Question accuracy")
    )


def test_after_a_sweep_the_claims_about_each_method_can_be_folded_away():
    claims = [
        "2 methods, tuned.",
        "  scale: 1 to 0",
        REVERSIBLE,
        "rmu: other weights.",
        "Scale -3: fell.",
        "rmu: fell.",
    ]
    found = swept(2, claims=claims, methods=[*METRICS["methods"], RMU])
    assert headlines(found) == (claims[:4], claims[4:])
    text = page("m", [section(report=found)])
    first, rest = text.split("<details><summary>Method by method</summary>")
    assert all(line.strip() in first for line in claims[:4]) and "Scale -3: fell." not in first
    assert "Scale -3: fell." in rest.split("</details>")[0]
    assert headlines(filled(METRICS | {"claims": claims})) == (claims, [])


def test_retrained_weights_have_no_edited_tokens_to_show():
    found = {entry.name: entry.edited_share("forget") for entry in pooled(MAPPED)}
    assert found["scale"] == 0.3 and found["rmu"] is None


def test_names_on_the_map_do_not_cover_one_another():
    figure = matplotlib.figure.Figure(figsize=(7, 5))
    axes = figure.add_subplot()
    axes.set_xlim(0, 1), axes.set_ylim(0, 1)
    points = [point for point in trade_offs(MAPPED, "accuracy") if not point.pooled.is_control] * 3
    plots._name_points(axes, points)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent().padded(-2) for text in axes.texts]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_a_page_without_results_claims_nothing():
    words = "".join(
        parsed(page("m", [section(report=None, selection=None, train=None, pictures={}, settings={})])).text
    )
    assert "nothing can be claimed" in words


def test_every_method_stands_beside_its_controls_with_intervals():
    outline = parsed(page("m", [section()]))
    words = "".join(outline.text)
    for shown in ("scale -3, 100 latents", "zero 100 latents", ISOTROPIC, "0.26 [0.23, 0.29]"):
        assert shown in words
    assert {"30.00%", "0.40%"} <= {part.strip() for part in outline.text}
    assert "Loss on held-out text, nats per token" in words


def table_of(text: str, caption: str) -> str:
    """The words of the table under a caption."""
    (found,) = re.findall(rf"<caption>{re.escape(caption)}</caption>.*?</table>", text, re.DOTALL)
    return found


def test_controls_stand_in_tables_of_their_own():
    text = page("m", [section()])
    edits = table_of(text, "Question accuracy")
    controls = table_of(text, "Random controls: question accuracy")
    assert ISOTROPIC in controls
    assert "scale -3, 100 latents" in edits
    assert "random" not in edits
    assert "baseline" not in controls


@pytest.mark.slow
def test_the_page_of_a_sweep_says_what_was_tried_chosen_and_not_measured():
    text = page("m", [section(report=swept(2))])
    outline = parsed(text)
    sweep = table_of(text, "The sweep, on the dev half: what was tried and what was chosen")
    assert sweep.count("<tr>") == 3
    rows = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", sweep.split("<tbody>")[1])
    assert rows[:12] == [
        "method 0", "2", "scale -4, 50 latents", "utility 1pt", "0.312", "0.96", "none", "0.312", "0.5", "0.688",
        "0.432", "0.5",
    ]  # fmt: skip
    assert rows[18] == "0.5"
    words = "".join(outline.text)
    assert f"Not measured: the selection has {HOSTILE}." in words
    assert "The sweep" not in page("m", [section()])
    assert "Not measured" not in page("m", [section()])


def test_tables_and_pictures_can_be_read_aloud():
    outline = parsed(page("m", [section()]))
    tags = [tag for tag, _ in outline.seen]
    assert tags.count("caption") == tags.count("table") > 0
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in outline.seen if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in outline.seen if tag == "img")
    assert tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in outline.seen


def test_only_the_first_pair_of_marks_is_the_peak():
    text = page("m", [section()])
    assert text.count("<mark>") == 1
    assert "<mark>the &lt;script&gt;" in text
    assert "</mark> end » « x" in text


@pytest.mark.slow
def test_writing_the_page_twice_gives_the_same_bytes(tmp_path: Path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "tiny-llama", [section(), section(title="other")])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert "other" in (tmp_path / "a.html").read_text()


# ---- pictures -----------------------------------------------------------------------------------

FORGET, RETAIN = np.array([0.0, 0.1, 0.01, 1e-5, 0.3]), np.array([0.2, 0.0, 1e-4, 0.0, 0.3])
DRAWINGS: dict[str, Callable[[plots.Kind], bytes]] = {
    "scatter": lambda kind: plots.frequency_scatter(
        FORGET, RETAIN, [1, 2], thresholds={"min_freq": 0.001, "max_neutral_freq": 0.005, "sort_by": "score"}, kind=kind
    ),
    "scatter of silence": lambda kind: plots.frequency_scatter([0.0, 0.0], [0.0, 0.0], [], thresholds={}, kind=kind),
    "bars": lambda kind: plots.domain_bars(TABLE, ACCURACY, kind=kind),
    "bars of nothing": lambda kind: plots.domain_bars(report(), ACCURACY, kind=kind),
    "trade-off": lambda kind: plots.trade_off(TABLE, ACCURACY, kind=kind),
    "trade-off of nothing": lambda kind: plots.trade_off(report(), ACCURACY, kind=kind),
    "training": lambda kind: plots.training_curve(
        [{"step": step, "fvu": 1 / (step + 1), "dead_share": None if step < 2 else 0.1} for step in range(5)], kind=kind
    ),
    "training of nothing": lambda kind: plots.training_curve([], kind=kind),
    "map": lambda kind: plots.method_map(MAPPED, ACCURACY, kind=kind),
    "map of nothing": lambda kind: plots.method_map(report(), ACCURACY, kind=kind),
    "sweep": lambda kind: plots.sweep_panels(swept(2), kind=kind),
    "sweep of more than a row": lambda kind: plots.sweep_panels(swept(5), kind=kind),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWINGS)
def test_pictures_are_valid_and_the_same_every_time(name: str):
    image = DRAWINGS[name]("png")
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert width > 500
    assert height > 300
    assert image.endswith(b"IEND\xaeB`\x82")
    assert image == DRAWINGS[name]("png")
    assert b"Software" not in image


def test_vector_pictures_carry_no_date_and_are_the_same_every_time():
    image = DRAWINGS["trade-off"]("svg")
    assert b"<svg" in image
    assert b"<dc:date>" not in image
    assert image == DRAWINGS["trade-off"]("svg")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=re.escape("pip install sae-forge[plot]")):
        plots.training_curve([])


def test_reports_load_neither_matplotlib_nor_torch_until_they_draw():
    code = "import sys, sae_forge.show.plots, sae_forge.show.html; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
