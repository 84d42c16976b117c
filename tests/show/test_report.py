"""Reports say what the numbers allow, escape what they are given, and draw the same picture every time."""

import base64
import json
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
from sae_forge.features.cards import Card, Cards, remembered
from sae_forge.features.cards import Snippet as CardSnippet
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.features.snippets import Snippet
from sae_forge.results.claims import RETRAINED, REVERSIBLE, headlines
from sae_forge.results.measure import Measure
from sae_forge.results.pooled import headline, pool, pooled, trade_offs
from sae_forge.results.report import Report
from sae_forge.results.sheets import overview
from sae_forge.show import plots, sweeps
from sae_forge.show.canvas import inline
from sae_forge.show.explorer import DECADES, STEPS, UNKNOWN, Continued, Latents, Voted, Written
from sae_forge.show.html import Section, page, write_page

HOSTILE = """<script>alert(1)</script> " onload='x' &amp; </table><img src=http://evil/x.png>"""
VOID = {"meta", "img", "br", "input"}


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


CARDS = Cards(
    ("saga", "wiki"), (40, 60), np.array([[0.5, 0.25, 0.0, np.nan] + [0.0] * 92, [0.0] * 96]), (HOSTILE, "the", " end"),
    (0, 1, 2, 1),
    (
        Card(7, (5, 0), 3.0, 1.5, ((5, 0), (0, 0)), ((1, 5),), (CardSnippet(100, 0, 0, 3, 1, (1,), (3.0,)),)),
        Card(2, (0, 4), 2.0, 1.0, ((0, 0), (3, 1)), ((0, 4),), (CardSnippet(100, 1, 2, 2, 0, (0, 1), (2.0, 1.0)),)),
    ),
)  # fmt: skip
LATENTS = Latents(selection=SELECTION, cards=CARDS, contexts=True, votes={7: Voted((HOSTILE,), ("no",))})
TEXTS = [Continued(f"Once {HOSTILE}", {"baseline": Written(HOSTILE), "Scale -3": Written("an end", ((0, 2, "7"),))})]


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


def embedded(text: str) -> dict[str, Any]:
    """What the script of a page is handed."""
    (told,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(told)


def section(**changes: Any) -> Section:
    drawn = plots.training_curve([{"step": 0, "fvu": 1.0}], kind="svg")
    given: dict[str, Any] = {
        "title": "blocks.1.hook_resid_post", "train": {"fvu": 0.0112, "steps": 1200}, "latents": LATENTS,
        "report": TABLE, "pictures": {"Accuracy by domain": inline(drawn)}, "texts": TEXTS,
        "settings": {"train": {"k": 16, "layer": [1], "lr": None}}, "commands": ["sae-forge eval --model m"],
    }  # fmt: skip
    return Section(**{**given, **changes})


def test_the_page_escapes_hostile_text_wherever_it_comes_from():
    hostile = told(
        method("baseline", [0.9, 0.9, 0.9]), method("scale", [0.3, 0.9, 0.9], scale=-1.0, **{HOSTILE: HOSTILE})
    )
    hostile["domains"] = {HOSTILE: hostile["domains"]["wizards"], **hostile["domains"]}
    for row in hostile["methods"]:
        row["domains"][HOSTILE] = row["domains"]["wizards"]
    one = section(
        title=HOSTILE, report=filled(hostile), train={HOSTILE: HOSTILE}, pictures={},
        settings={HOSTILE: {HOSTILE: [HOSTILE]}}, commands=[HOSTILE],
    )  # fmt: skip
    text = page(HOSTILE, [one, section(pictures={})], facts=[HOSTILE], versions={HOSTILE: HOSTILE})
    outline = parsed(text)
    tags = [tag for tag, _ in outline.seen]
    assert tags.count("script") == 2 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in outline.seen for name in attributes)
    assert HOSTILE in "".join(outline.text)
    data = embedded(text)
    assert data["saes"][0]["pieces"][0] == data["texts"][0]["under"]["baseline"]["text"] == HOSTILE
    assert data["saes"][0]["cards"][0]["promoted"] == [HOSTILE]


def test_the_page_needs_nothing_from_elsewhere_and_may_fetch_nothing():
    text = page("tiny-llama", [section(latents=None, texts=())])
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script and not re.search(r"fetch|XMLHttp|WebSocket|import\(|eval\(|innerHTML", script[1])
    # the one address is the name of a kind of picture
    assert set(re.findall(r"https?:[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|<link|src=|/tmp|/home", text)
    assert "default-src 'none'" in text


def test_what_the_script_is_handed_is_all_that_is_known_of_the_latents():
    one, other = embedded(page("m", [section(), section(title="other", texts=())]))["saes"]
    assert (one["name"], other["name"]) == ("blocks.1.hook_resid_post", "other")
    codes = np.frombuffer(base64.b64decode(one["forget"]), "<u2")
    shares = 10.0 ** (DECADES * ((codes[:3] - 1.0) / STEPS - 1))
    assert shares[:2] == pytest.approx([0.5, 0.25], rel=3e-4) and codes[2] == 0 and codes[3] == UNKNOWN
    # of a chosen latent what the selection counted, which saw every token
    assert 10.0 ** (DECADES * ((codes[7] - 1.0) / STEPS - 1)) == pytest.approx(LATENT.forget_frequency, rel=3e-4)
    chosen, busy = one["cards"]
    assert one["chosen"] == [7] and chosen["latent"] == 7 and chosen["score"] == 0.5 and busy["score"] is None
    assert chosen["favourites"] == [["the", 5]] and chosen["snippets"] == [[100, 0, 0, 3, 1, [1], [3.0]]]
    assert one["about"].startswith("1 of 2 valid latents are chosen, by inlp, highest score first; filters removed: ")


def test_a_mark_stands_where_the_script_counts_it():
    one = Continued("It", {"scale": Written("🙂 ends", ((1, 6, "7"), (0, 1, "7")))})
    (told,) = embedded(page("m", [Section(title="s", texts=[one])]))["texts"]
    assert told["under"]["scale"]["edited"] == [[2, 7, "7"], [0, 2, "7"]]


def test_where_the_activations_are_gone_the_selection_is_shown_as_far_as_it_goes():
    shown = Latents(selection=SELECTION, cards=remembered(SELECTION, show_forget=True), contexts=True)
    (told,) = embedded(page("m", [section(latents=shown)]))["saes"]
    (card,) = told["cards"]
    _, _, start, length, peak, _, acts = card["snippets"][0]
    # only the first pair of marks is the peak; others are the corpus's own
    pieces = [told["pieces"][place] for place in told["text"][start : start + length]]
    assert pieces == [f"{HOSTILE} ", f"the {HOSTILE}", " end » « x"] and acts == [3.0] and peak == 1
    assert "are gone" in told["about"]
    assert (np.frombuffer(base64.b64decode(told["forget"]), "<u2")[:7] == UNKNOWN).all()
    assert remembered(SELECTION, show_forget=False).pieces == ()


def test_the_page_opens_with_the_verdict_beside_its_caveats_and_folds_the_sentences():
    text = page("tiny-llama", [section()])
    words = "".join(parsed(text).text)
    assert (
        words.index("Unlearning report: tiny-llama")
        < words.index("Forgotten?")
        < words.index(REVERSIBLE)
        < words.index("forget questions fell.")
        < words.index("Question accuracy by role")
    )
    folded = text.split("<details")[1].split("</details>")[0]
    assert "forget questions fell." in folded and "under" in folded
    assert 'beside it in <span class="flag">--methods</span>' in text, "a line would end behind the hyphens"
    assert RETRAINED.format(names="rmu") in page("m", [section(report=MAPPED)])


def test_after_a_sweep_the_claims_about_all_methods_come_first():
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
    assert headlines(filled(METRICS | {"claims": claims})) == (claims, [])


def test_several_saes_stand_side_by_side():
    text = page("m", [section(title="k 8"), section(title="k 16", report=None, latents=None)])
    compared = table_of(text, "The SAEs of this run, each with the first method that was measured on it")
    rows = re.findall(r"<th scope=\"row\">(.*?)</th>", compared)
    assert rows == ["k 8", "k 16"] and "scale -3, 100 latents" in compared and "not measured" in compared
    # those within a picture are of its content, so equal ones are of equal things
    own = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    ids = [attributes["id"] for _, attributes in parsed(own).seen if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"verdict", "verdict-2"} <= set(ids)
    assert "side by side" not in page("m", [section()]).lower().split("<script")[0]


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
    words = "".join(parsed(page("m", [Section(title="t")])).text)
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
    # a picture says nothing that its caption and the tables do not
    assert all(attributes.get("aria-hidden") == "true" for tag, attributes in outline.seen if tag == "svg")
    assert tags.count("figure") == tags.count("figcaption") == 1
    assert tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in outline.seen


def test_a_picture_within_the_page_takes_its_colours():
    drawn = inline(plots.trade_off(TABLE, ACCURACY, kind="svg"))
    colours = set(re.findall(r"(?:fill|stroke): ?(#\w+)", drawn))
    assert not colours and "var(--paper)" in drawn and "var(--ink)" in drawn
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert ids and all(f"#{name}" in drawn for name in ids)
    assert "xmlns=" not in drawn and "<metadata" not in drawn


def test_latents_and_strength_has_a_panel_for_each_method_that_has_both():
    found = swept(2)
    assert sweeps.has_grids(found) and not sweeps.has_grids(TABLE)
    text = inline(sweeps.latents_and_strength(found, kind="svg"))
    assert all(f"method {number}: scale" in text for number in range(2)) and ">31<" in text and ">50<" in text


@pytest.mark.slow
def test_writing_the_page_twice_gives_the_same_bytes(tmp_path: Path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "tiny-llama", [section(), section(title="other", texts=())])
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
    "sweep": lambda kind: sweeps.sweep_panels(swept(2), kind=kind),
    "sweep of more than a row": lambda kind: sweeps.sweep_panels(swept(5), kind=kind),
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
