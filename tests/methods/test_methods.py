"""Methods by their names: settings from flags and from grids, the numbers behind them, and what cannot be measured."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import FORGET, LATENTS, NAMED, POINT, RETAIN, TinyRun, forge, made
from torch import Tensor

from sae_forge.config.evaluate import EvalConfig
from sae_forge.data.shards import ShardReader
from sae_forge.errors import BackendError, ConfigError, DataError
from sae_forge.interventions.apply import applied, delta
from sae_forge.interventions.calibration import calibrated
from sae_forge.interventions.clamping import MeanAblation
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.gates.sequence import SequenceGate
from sae_forge.methods.method import ends, grid
from sae_forge.methods.subjects import Edited, Retrained, Subject
from sae_forge.methods.table import methods_of
from sae_forge.study.plan import iter_plans
from sae_forge.study.settings import eval_config

UNTUNED = [method.name for method in NAMED.values() if method.axes is None]
TUNED = [method.name for method in NAMED.values() if method.axes is not None]
KINDS = {kind: {method.name for method in NAMED.values() if method.kind == kind} for kind in ("hook", "weights")}


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


def rows_of(reader: ShardReader) -> Tensor:
    """Every activation of a corpus."""
    return torch.cat([reader.read_acts(block).float() for block in range(reader.block_count)])


def sequences_of(reader: ShardReader) -> list[Tensor]:
    """The activations of each sequence of a corpus."""
    ids = torch.cat([reader.read_origins(block)["seq_ids"] for block in range(reader.block_count)])
    rows = rows_of(reader)
    return [rows[ids == sequence] for sequence in ids.unique()]


def acts_of(run: TinyRun, x: Tensor, latents: tuple[int, ...]) -> Tensor:
    """Acts by encoding every latent and looking the chosen ones up."""
    found = run.sae.encode(x)
    dense = torch.zeros(len(x), run.sae.d_sae).scatter_(1, found.indices, found.values)
    return dense[:, list(latents)]


# ---- every name ---------------------------------------------------------------------------------


def test_methods_are_asked_in_the_order_of_the_table():
    assert methods_of(("all",)) == methods_of(tuple(NAMED)) == tuple(NAMED.values())
    assert methods_of(("random", "rmu", "scale")) == (NAMED["scale"], NAMED["rmu"])


@pytest.mark.parametrize("method", NAMED)
def test_what_the_flags_name_is_built(run: TinyRun, method: str):
    materials = run.materials(ablation_scale=(-1.0, -3.0), clamp_value=(0.5, 1.0, 2.0))
    listed = NAMED[method].from_flags(10, materials)
    flags = {"scale": 2, "project": 2, "diff_means": 2, "clamp": 3, "clamp_prime": 3, "conditional_clamp": 3}
    assert len(listed) == ({**flags, "dsg": 3, "steer": 3}.get(method, 1))
    for settings in listed:
        assert settings.get("num_features", 10) == 10
        holds(run, method, settings, NAMED[method].build(settings, materials))


@pytest.mark.parametrize("method", NAMED)
def test_what_a_grid_lists_is_built(run: TinyRun, method: str):
    materials = run.materials()
    for settings in grid(NAMED[method], materials):
        holds(run, method, settings, NAMED[method].build(settings, materials))


def holds(run: TinyRun, method: str, settings: dict, subject: Subject) -> None:
    """What was built is the method, at these settings."""
    if method in KINDS["weights"]:
        assert isinstance(subject, Retrained) and subject.changes_weights
        assert subject.recipe.name == method
        known = {entry.name for entry in fields(subject.recipe)}
        for name, value in settings.items():
            assert name in ("num_features", "relative") or getattr(subject.recipe, name) == value
        assert set(settings) - known <= {"num_features", "relative"}
        if method == "crisp":
            (suppressed,) = subject.recipe.suppressed  # pyright: ignore[reportAttributeAccessIssue]
            assert suppressed.latents == run.selection.indices[: settings["num_features"]]
        return
    assert isinstance(subject, Edited) and not subject.changes_weights
    (edit,) = subject.edits
    intervention = edit.intervention
    assert intervention.name == method
    if method == "diff_means":
        assert edit.dictionary.d_sae == 1
        return
    assert edit.dictionary is run.sae
    if method != "refusal_clamp":
        assert intervention.targets == intervention.written == run.selection.indices[: settings["num_features"]]
    else:
        assert intervention.written == (settings["refusal_latent"],) == (run.selection.refusal_latent,)
    written = {"value", "scale", "strength"} & set(settings)
    assert all(settings[name] in vars(intervention.edit).values() for name in written)


@pytest.mark.parametrize("count", [8, 12, 13, 24])
@pytest.mark.parametrize("method", TUNED)
def test_a_grid_has_as_many_different_settings_as_every_other(run: TinyRun, method: str, count: int):
    materials = run.materials(configurations=count)
    if method == "rmu" and count < 12:
        with pytest.raises(ConfigError, match=r"--configurations 8: rmu needs at least 12"):
            grid(NAMED[method], materials)
        return
    found = grid(NAMED[method], materials)
    assert len(found) == len({repr(sorted(one.items())) for one in found}) == count
    assert max(one.get("num_features", 0) for one in found) <= LATENTS


@pytest.mark.parametrize("method", UNTUNED)
def test_where_there_is_nothing_to_tune_there_is_one_setting(run: TinyRun, method: str):
    assert grid(NAMED[method], run.materials(configurations=24)) == [{"num_features": LATENTS}]


def test_a_grid_reaches_from_its_gentlest_to_its_roughest_in_equal_ratios(run: TinyRun):
    found = grid(NAMED["project"], run.materials(configurations=24))
    strengths = sorted({one["strength"] for one in found})
    assert (strengths[0], strengths[-1]) == (0.25, 4.0)
    ratios = np.diff(np.log(strengths))
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.02)
    assert {one["num_features"] for one in found} == {24, 12, 6}


def test_one_latent_is_still_tried_as_often(run: TinyRun):
    for method in ("scale", "clamp", "dsg", "project"):
        found = grid(NAMED[method], run.materials(num_features=(1,)))
        assert len({repr(one) for one in found}) == 12
        assert {one["num_features"] for one in found} == {1}


def test_settings_that_cannot_be_told_apart_are_no_equal_budget(run: TinyRun):
    """Latents that never fired on forget text have a peak of 0, so every share of it is the same threshold."""
    silent = tuple(replace(latent, forget=replace(latent.forget, peak=0.0)) for latent in run.selection.latents[:2])
    materials = run.materials(replace(run.selection, latents=silent))
    with pytest.raises(ConfigError, match=r"refusal_clamp has only 6 .* budget cannot be equal"):
        grid(NAMED["refusal_clamp"], materials)
    with pytest.raises(ConfigError, match=r"gradient_ascent has only .* budget cannot be equal"):
        grid(NAMED["gradient_ascent"], run.materials(baseline_steps=1))


# ---- the numbers --------------------------------------------------------------------------------


def test_relative_values_move_a_token_by_that_many_median_norms(run: TinyRun):
    materials = run.materials(clamp_value=(0.5, 2.0))
    norms = np.sort(torch.cat([rows_of(reader) for reader in run.shards.retain.values()]).double().norm(dim=-1).numpy())
    median = norms[(len(norms) - 1) // 2]
    assert materials.retain_norm == pytest.approx(median, rel=1e-6)
    for size in (5, LATENTS):
        latents = run.selection.indices[:size]
        total = np.linalg.norm(run.sae.W_dec.detach().double().numpy()[list(latents)].sum(0))
        for method in ("clamp", "clamp_prime", "conditional_clamp", "dsg", "steer"):
            for kappa, settings in zip((0.5, 2.0), NAMED[method].from_flags(size, materials), strict=True):
                assert settings["relative"] == kappa
                assert settings["value"] == pytest.approx(-kappa * median / total, rel=5e-3)  # three digits
        assert materials.value(0.5, latents) == pytest.approx(0.5 * median / total, rel=1e-6)
    absolute = run.materials(clamp_value=(0.5,), value_units="absolute", refusal_value=-7.0, theta=0.25, bare=True)
    assert NAMED["clamp"].from_flags(5, absolute) == [{"num_features": 5, "value": -0.5}]
    assert NAMED["refusal_clamp"].from_flags(5, absolute) == [
        {"num_features": 5, "refusal_latent": run.selection.refusal_latent, "value": -7.0, "theta": 0.25}
    ]


def test_a_refusal_latent_is_written_relative_to_its_own_row(run: TinyRun):
    materials = run.materials(refusal_value=-1.5)
    (settings,) = NAMED["refusal_clamp"].from_flags(LATENTS, materials)
    length = float(run.sae.W_dec[run.selection.refusal_latent].norm())  # pyright: ignore[reportArgumentType]
    assert settings["value"] == pytest.approx(-1.5 * materials.retain_norm / length, rel=5e-3)


def test_mean_ablation_writes_the_mean_over_all_retain_tokens(run: TinyRun):
    materials = run.materials()
    latents = run.selection.indices[:6]
    x = torch.cat([rows_of(reader) for reader in run.shards.retain.values()])
    edit = made("mean_ablate", {"num_features": 6}, materials)
    assert isinstance(edit.intervention.edit, MeanAblation)
    assert edit.intervention.edit.means == pytest.approx(acts_of(run, x, latents).double().mean(0).tolist(), rel=1e-4)


@pytest.mark.parametrize("percentile", [50.0, 95.0])
@pytest.mark.parametrize("size", [6, LATENTS])
def test_the_threshold_of_dsg_is_the_highest_percentile_of_any_retain_corpus(
    run: TinyRun, percentile: float, size: int
):
    materials, latents = run.materials(gate_percentile=percentile), run.selection.indices[:size]
    (settings,) = NAMED["dsg"].from_flags(size, materials)
    edit = made("dsg", settings, materials)
    corpora = [sequences_of(reader) for reader in run.shards.retain.values()]
    rates = [[float((acts_of(run, one, latents) > 0).any(1).double().mean()) for one in texts] for texts in corpora]
    assert len(rates) == 2 and min(map(len, rates)) > 40
    wanted = max(np.percentile(found, percentile) for found in rates)
    assert isinstance(edit.intervention.gate, SequenceGate)
    assert edit.intervention.gate.limit == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("budget", [0.5, 2.0])
def test_diff_means_moves_forget_text_as_far_as_its_budget(run: TinyRun, gated: bool, budget: float):
    materials = run.materials(ablation_scale=(-3.0,), gate_percentile=80.0)
    edit = made("diff_means", {"budget": budget, "gated": gated}, materials)
    x = rows_of(run.shards.forget)
    reference = -4.0 * acts_of(run, x, run.selection.indices) @ run.sae.W_dec[list(run.selection.indices)]
    moved = delta(edit.dictionary, edit.intervention, x[None], torch.ones(1, len(x), dtype=torch.bool))[0]
    wanted = budget * float(reference.double().norm(dim=-1).mean())
    assert float(moved.double().norm(dim=-1).mean()) == pytest.approx(wanted, rel=1e-4)
    mean = x.double().mean(0) - torch.cat([rows_of(one) for one in run.shards.retain.values()]).double().mean(0)
    along = torch.nn.functional.cosine_similarity(moved.double(), mean[None]).abs()
    touched = moved.any(dim=-1)
    torch.testing.assert_close(along[touched], torch.ones(int(touched.sum())).double(), atol=1e-4, rtol=0)
    assert float(touched.double().mean()) < 0.9 if gated else bool(touched.all())


@pytest.mark.parametrize("gated", [False, True])
def test_diff_means_is_as_strong_as_its_budget_on_tokens_that_are_no_sinks(run: TinyRun, gated: bool):
    x, retain = rows_of(run.shards.forget), [rows_of(one) for one in run.shards.retain.values()]
    norm = float(x.norm(dim=1).quantile(0.8))
    materials = run.materials(replace(run.selection, sink_norm=norm), ablation_scale=(-3.0,), gate_percentile=80.0)
    edit = made("diff_means", {"budget": 1.0, "gated": gated}, materials)
    x, retain = (x[x.norm(dim=1) <= norm], [rows[rows.norm(dim=1) <= norm] for rows in retain])
    reference = -4.0 * acts_of(run, x, run.selection.indices) @ run.sae.W_dec[list(run.selection.indices)]
    moved = delta(edit.dictionary, edit.intervention, x[None], torch.ones(1, len(x), dtype=torch.bool))[0]
    wanted = float(reference.double().norm(dim=-1).mean())
    assert float(moved.double().norm(dim=-1).mean()) == pytest.approx(wanted, rel=1e-4)
    if gated:
        along = [rows.double() @ edit.dictionary.W_dec[0].double() for rows in retain]
        assert edit.dictionary.threshold == pytest.approx(max(float(np.percentile(one, 80.0)) for one in along))


# ---- gates and the error ------------------------------------------------------------------------


def statistic(kind: str, acts: np.ndarray, drift: float) -> float:
    """What a gate of whole texts compares with its threshold, token by token."""
    hot = (acts > 0).any(1)
    match kind:
        case "mean":
            return hot.mean()
        case "window":
            return max(hot[max(0, end - 8) : end].sum() / 8 for end in range(1, len(hot) + 1))
        case "max":
            return acts.max()
    found, walk = 0.0, 0.0
    for hit in hot:
        walk = max(0.0, walk + hit - drift)
        found = max(found, walk)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "any", "all", "mean", "window", "cusum", "max"])
def test_gates_open_where_the_statistic_of_a_text_exceeds_that_of_most_retain_texts(run: TinyRun, kind: str):
    materials = run.materials(gate=kind, gate_window=8, gate_percentile=90.0)
    size = 2 if kind == "all" else LATENTS
    edit = made("steer", {"num_features": size, "value": 1.0}, materials)
    latents = run.selection.indices[:size]
    retain = [one for reader in run.shards.retain.values() for one in sequences_of(reader)]
    forget = sequences_of(run.shards.forget)
    texts = [acts_of(run, one, latents).numpy() for one in (*retain, *forget)]
    ends = np.cumsum([0, *(len(sequences_of(reader)) for reader in run.shards.retain.values())])
    corpora = [slice(start, end) for start, end in pairwise(ends)]
    rates = [statistic("mean", one, 0.0) for one in texts]
    drift = float(max(np.percentile(rates[corpus], 90.0) for corpus in corpora))
    found = [statistic(kind, one, drift) for one in texts]
    limit = max(np.percentile(found[corpus], 90.0) for corpus in corpora)
    opened = []
    for x, acts, value in zip((*retain, *forget), texts, found, strict=True):
        moved = delta(run.sae, edit.intervention, x[None], torch.ones(1, len(x), dtype=torch.bool))[0].any(dim=-1)
        hot = (acts > 0).any(1)
        opened.append(bool(moved.any()))
        match kind:
            case "none":
                wanted = np.ones(len(x), dtype=bool)
            case "any":
                wanted = hot
            case "all":
                wanted = (acts > 0).all(1)
            case _:
                if math.isclose(value, limit, rel_tol=1e-6):
                    continue  # equal up to rounding: either side is right
                wanted = hot & bool(value > limit)
        np.testing.assert_array_equal(moved.numpy(), wanted)
    if kind in ("mean", "window", "cusum", "max"):
        of_retain, of_forget = np.mean(opened[: len(retain)]), np.mean(opened[-len(forget) :])
        assert of_retain <= 0.11
        assert of_forget > 2 * of_retain


def test_an_own_gate_is_the_methods_and_another_takes_its_place(run: TinyRun):
    settings = {"num_features": 6, "value": -1.0, "percentile": 90.0}
    own = made("dsg", settings, run.materials())
    shut = made("dsg", settings, run.materials(gate="none"))
    assert isinstance(own.intervention.gate, SequenceGate)
    assert own.intervention.edit == shut.intervention.edit
    assert own.intervention.gate != shut.intervention.gate


def test_without_the_error_every_real_token_is_edited(run: TinyRun):
    batch = run.lm.tokenizer([FORGET[0], RETAIN["stones"][3][:20]], padding=True, return_tensors="pt")
    counted = {}
    for keep in (True, False):
        edit = made("clamp", {"num_features": 3, "value": -1.0}, run.materials(keep_error=keep))
        with torch.no_grad(), applied(run.lm, run.sae, POINT, edit.intervention) as log:
            run.lm.model(batch["input_ids"], attention_mask=batch["attention_mask"])
        counted[keep] = log
    assert counted[True].edited < counted[True].tokens == counted[False].tokens == counted[False].edited
    special = len(batch["input_ids"])  # each text's BOS, which is no real token
    assert counted[False].tokens == int(batch["attention_mask"].sum()) - special


# ---- what cannot be measured --------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def test_a_method_that_was_named_and_cannot_be_measured_is_refused(run: TinyRun, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="the selection has none; make one: features --refusal"):
        run.evaluate(replace(run.selection, refusal_latent=None), methods=("refusal_clamp",))
    with pytest.raises(DataError, match="relative values, calibrated gates and retrained baselines need"):
        _ = run.materials(bare=True).retain_norm
    without(monkeypatch, "peft")
    with pytest.raises(BackendError, match=r"pip install 'sae-forge\[baselines\]'"):
        run.evaluate(methods=("scale", "crisp"))


@pytest.mark.slow
def test_all_leaves_out_what_cannot_be_measured_and_says_why(run: TinyRun, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "peft")
    selection = replace(run.selection, refusal_latent=None)
    metrics = run.evaluate(selection, methods=("all",), controls=("direction",), limit=2).metrics
    assert set(metrics["left_out"]) == {"refusal_clamp", "crisp", "suppress"}
    assert "features --refusal TEXT" in metrics["left_out"]["refusal_clamp"]
    assert "pip install" in metrics["left_out"]["crisp"]
    names = list(dict.fromkeys(row["name"] for row in metrics["methods"]))
    assert names == ["baseline", *(name for name in NAMED if name not in metrics["left_out"]), "random"]
    kinds = {row["name"]: row["kind"] for row in metrics["methods"]}
    assert {name for name, kind in kinds.items() if kind == "weights"} == KINDS["weights"] - {"crisp", "suppress"}
    controlled = {row["settings"]["of"] for row in metrics["methods"] if row["name"] == "random"}
    assert controlled == KINDS["hook"] - {"refusal_clamp", *UNTUNED}


def test_a_plain_edit_needs_no_shards(run: TinyRun):
    names = ("scale", "zero", "mean_ablate", "project")
    plans = list(iter_plans(run.materials(bare=True, methods=names), methods_of(names)))
    assert [plan.name for plan in plans] == ["baseline", *names]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "magic"], ["magic", *NAMED, "all", "random"]),
        (["--methods", "random"], ["--methods random", "name one too", "scale,random"]),
        (["--methods", "scale,rmu", "--sweep", "--half", "dev"], ["--half dev", "test half"]),
        (["--configurations", "7"], ["--configurations 7", "at least 8"]),
        (["--gate", "door"], ["door", "cusum"]),
        (["--controls", "magic"], ["magic", "isotropic"]),
        (["--clamp_value", "-3"], ["--clamp_value -3", "0 or more"]),
    ],
)
def test_bad_methods_are_one_line(run: TinyRun, flags: list[str], words: list[str]):
    before = sorted(run.folder.rglob("*"))
    output = forge("eval", *run.where, *flags, code=2)
    for word in words:
        assert word in output
    assert sorted(run.folder.rglob("*")) == before


def test_controls_alone_are_allowed_beside_a_steering_file():
    assert EvalConfig(methods=("random",), steering=Path("x.csv")).methods == ("random",)
    with pytest.raises(ConfigError, match="name one too"):
        EvalConfig(methods=("random",))


# ---- what another gate replaces, and what cannot be combined ------------------------------------


@pytest.mark.parametrize("method", ["dsg", "refusal_clamp"])
def test_a_gate_that_replaces_a_methods_own_leaves_nothing_of_it_to_tune(run: TinyRun, method: str):
    materials = run.materials(gate="any", configurations=8)
    tried = grid(NAMED[method], materials)
    edits = {repr(made(method, one, materials)) for one in tried}
    assert len(tried) == 8
    assert len(edits | {repr(one) for one in tried}) >= 8
    assert all("percentile" not in one and "theta" not in one for one in tried)
    (settings,) = NAMED[method].from_flags(LATENTS, materials)
    assert "percentile" not in settings and "theta" not in settings
    edit = made(method, settings, materials)
    assert edit.intervention.gate == AnyFires(0.0)


@pytest.mark.slow
def test_a_sweep_may_try_how_rare_latents_must_be(run):
    rarest = sorted(latent.retain_frequency for latent in run.selection.latents)
    limits = (rarest[len(rarest) // 2] + 1e-9, 1.0)
    materials = run.materials(sweep_thresholds=limits, configurations=12, theta=0.5)
    for name in ("clamp", "conditional_clamp"):
        tried = grid(NAMED[name], materials)
        assert {settings["retain_threshold"] for settings in tried} == set(limits)
        assert len({repr(settings) for settings in tried}) == 12
    for settings in grid(NAMED["clamp"], materials):
        (edit,) = NAMED["clamp"].build(settings, materials).edits
        rare = [one.index for one in run.selection.latents if one.retain_frequency < settings["retain_threshold"]]
        assert list(edit.intervention.targets) == rare[: settings["num_features"]]
    assert all("retain_threshold" not in settings for settings in grid(NAMED["rmu"], materials))
    with pytest.raises(DataError, match="no selected latent is as rare"):
        common = replace(
            run.selection, latents=tuple(replace(one, retain_frequency=0.5) for one in run.selection.latents)
        )
        grid(NAMED["clamp"], run.materials(common, sweep_thresholds=(0.4,), configurations=8))


def test_a_gate_that_counts_special_tokens_is_calibrated_on_them(run):
    """Thresholds of DSG's own share, from the model's reading of the retain rows, special tokens too."""
    materials = run.materials(gate_tokens="attended", tokens="all_but_first", methods=("dsg",))
    latents = materials.selection.indices[:4]
    plain = run.materials().traces(latents)
    for name, traces in materials.traces(latents).items():
        assert sum(map(len, traces)) > sum(map(len, plain[name])), "BOS is there as well"
        assert not any(trace[0].any() for trace in traces), "and never a hit"
        rates = [float((trace > 0).any(-1).float().mean()) for trace in traces]
        gate = calibrated(MeanRate(0.0), traces, 50.0)
        assert gate.limit == pytest.approx(float(torch.tensor(rates).double().quantile(0.5)), abs=1e-6)
        hits = {len(one) - len(other) for one, other in zip(traces, plain[name], strict=True)}
        assert min(hits) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"gate": "all"}, {"keep_error": False}])
def test_diff_means_takes_no_gate_and_has_no_error_to_drop(run: TinyRun, changed: dict[str, Any]):
    with pytest.raises(ConfigError, match="diff_means reads no SAE"):
        run.evaluate(methods=("diff_means",), **changed)
    edits = tuple(NAMED[name] for name in NAMED if name in KINDS["hook"])  # weights have neither
    asked: dict[str, Any] = {"methods": ("all",), "limit": 1, "random_seeds": 3, "controls": ("direction",)}
    left_out = run.evaluate(table=edits, **asked, **changed).metrics
    assert "diff_means reads no SAE" in left_out["left_out"]["diff_means"]
    assert "diff_means" not in {row["name"] for row in left_out["methods"]}
    assert {left_out["protocol"][name] for name in ("gate",)} == {changed.get("gate", "own")}


def test_the_strengths_at_both_ends_of_a_grid_are_known(run: TinyRun):
    materials = run.materials(configurations=12)
    scales = [one["scale"] for one in grid(NAMED["scale"], materials)]
    assert ends(NAMED["scale"], materials) == [
        {max(scales): "gentlest", min(scales): "roughest"}.get(scale) for scale in scales
    ]
    assert ends(NAMED["zero"], materials) == [None]


@pytest.mark.slow
def test_an_edit_of_every_token_has_no_other_tokens_to_be_put_on(run: TinyRun):
    methods = ("steer", "project", "diff_means", "clamp", "random")
    rows = run.evaluate(methods=methods, limit=1, controls=("places",)).metrics["methods"]
    placed = {(row["settings"]["of"], row["settings"].get("gated")) for row in rows if row["name"] == "random"}
    assert placed == {("clamp", None), ("diff_means", True)}


def test_without_shards_the_message_says_what_is_missing_and_what_to_do(run: TinyRun):
    bare = run.materials(bare=True)
    reasons = {"rmu": "trains on", "dsg": "has a gate", "clamp": "--value_units absolute", "diff_means": "means"}
    for method, why in reasons.items():
        said = str(NAMED[method].needs(bare))
        assert why in said and f"leave {method} out" in said
    absolute = run.materials(bare=True, value_units="absolute")
    assert NAMED["clamp"].needs(absolute) is None and NAMED["scale"].needs(bare) is None
    assert "has a gate" in str(NAMED["scale"].needs(run.materials(bare=True, gate="mean")))


def test_flags_that_a_sweep_would_ignore_are_refused():
    for name in ("theta", "clamp_value", "refusal_value"):
        with pytest.raises(ConfigError, match=f"--{name} would mean nothing"):
            eval_config()(sweep=True, spelled=frozenset({name}))
    eval_config()(sweep=True, value_units="absolute", spelled=frozenset({"clamp_value"}))
    with pytest.raises(ConfigError, match="cusum sums over a text"):
        eval_config()(gate="cusum", gate_policy="per_token")
