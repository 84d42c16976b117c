"""Measurements turned into the numbers of a report: estimates by domain and role, and paired changes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sae_forge.statistics.answers import alignment, chance_distance, letter_shares
from sae_forge.statistics.bootstrap import Bootstrap, Estimate, interval
from sae_forge.study.measure import WRITING, Measurement, Suite, Touched
from sae_forge.tasks.items import ROLES, Domain
from sae_forge.tasks.muse_scores import leak

GENERATED = ("distinct_1", "distinct_2", "distinct_3", "stutter", "degenerate")


@dataclass(frozen=True)
class Series:
    """One measure of many items: totals, what they are counted over, and what is resampled together."""

    sums: np.ndarray
    counts: np.ndarray
    clusters: tuple[str, ...]

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """The measure's mean."""
        return bootstrap.ratio(self.sums, self.counts, self.clusters)

    def minus(self, other: "Series") -> "Series":
        """The paired difference to the same items measured otherwise."""
        return Series(self.sums - other.sums, self.counts, self.clusters)


# ---- measurements to series ---------------------------------------------------------------------


def by_role(suite: Suite) -> dict[str, list[Domain]]:
    """The domains of each role that has any."""
    members = {role: [domain for domain in suite.domains if domain.role == role] for role in ROLES}
    return {role: domains for role, domains in members.items() if domains}


def pooled(domains: list[Domain], found: Measurement) -> dict[str, Series]:
    """What the questions and prompts of these domains measured, taken together.

    ``logprob`` is nats per target token of the prompts; without prompts, of the right options.
    """
    asked = [(domain, item, got) for domain in domains for item, got in _pairs(domain.questions, found.answers, domain)]
    begun = [(domain, item, got) for domain in domains for item, got in _pairs(domain.prompts, found.targets, domain)]
    series: dict[str, Series] = {}
    if asked:
        facts = tuple(f"{domain.name}/{item.fact}" for domain, item, _ in asked)
        series["accuracy"] = _series((float(got.correct) for *_, got in asked), facts)
        series["answer_logprob"] = _series((got.logprob for *_, got in asked), facts)
        series["probability"] = _series((got.probability for *_, got in asked), facts)
        series["logprob"] = _series((got.options[got.answer].mean for *_, got in asked), facts)
    if begun:
        facts = tuple(f"{domain.name}/{item.fact}" for domain, item, _ in begun)
        series["logprob"] = _series((got.mean for *_, got in begun), facts)
    return series


def _pairs(items: Iterable[Any], found: dict[str, list[Any]], domain: Domain) -> Iterable[tuple[Any, Any]]:
    return zip(items, found.get(domain.name, []), strict=True)


def _series(values: Iterable[float], clusters: tuple[str, ...]) -> Series:
    return Series(np.fromiter(values, dtype=float), np.ones(len(clusters)), clusters)


def loss_series(suite: Suite, found: Measurement) -> dict[str, Series]:
    """Nats per token by role, and by corpus where a role has several."""
    series: dict[str, Series] = {}
    for role in ROLES:
        keys = [corpus.key for corpus in suite.corpora if corpus.role == role]
        if keys:
            series[role] = _losses(keys, found)
        if len(keys) > 1:
            series |= {key: _losses([key], found) for key in keys}
    return series


def _losses(keys: list[str], found: Measurement) -> Series:
    nats = [value for key in keys for value in found.losses[key].nats]
    tokens = [value for key in keys for value in found.losses[key].tokens]
    rows = tuple(f"{key}/{row}" for key in keys for row in range(len(found.losses[key].nats)))
    return Series(np.array(nats), np.array(tokens, dtype=float), rows)


def generation_series(found: Measurement) -> dict[str, Series]:
    """Repetition in what was written."""
    measures = [written.measures() for written in found.written]
    prompts = tuple(map(str, range(len(measures))))
    return {name: _series((one[name] for one in measures), prompts) for name in GENERATED} if measures else {}


def muse_series(suite: Suite, found: Measurement) -> dict[str, Series]:
    """ROUGE-L F1 x 100 of what was recited and answered, by MUSE's measure."""
    return {
        asked.name: _series(
            (100 * got.rouge_l for got in found.recalled[asked.name]), tuple(item.fact for item in asked.prompts)
        )
        for asked in suite.muse.recalls
        if asked.name in found.recalled
    }


# ---- series to the report -----------------------------------------------------------------------


def describe(suite: Suite, found: Measurement, bootstrap: Bootstrap) -> dict[str, Any]:
    """One method's part of a report, apart from its change."""
    losses = {key: series.estimate(bootstrap) for key, series in loss_series(suite, found).items()}
    return {
        "domains": {
            domain.name: _described([domain], pooled([domain], found), found, bootstrap) for domain in suite.domains
        },
        "roles": {
            role: _described(domains, pooled(domains, found), found, bootstrap)
            for role, domains in by_role(suite).items()
        },
        "loss": {key: loss.to_json() for key, loss in losses.items()},
        "perplexity": {key: loss.transformed(math.exp).to_json() for key, loss in losses.items()},
        "edited_share": _edited_shares(suite, found),
        "edit_norm": _edit_norms(suite, found),
        "generation": _estimates(generation_series(found), bootstrap),
        **_described_muse(suite, found, bootstrap),
    }


def change(suite: Suite, found: Measurement, base: Measurement, bootstrap: Bootstrap) -> dict[str, Any]:
    """Paired differences to the baseline, by the same keys; nats, shares and rates as they are."""
    groups = {"domains": {domain.name: [domain] for domain in suite.domains}, "roles": by_role(suite)}
    changed: dict[str, Any] = {
        group: {
            place: _differences(pooled(members, found), pooled(members, base), bootstrap)
            for place, members in places.items()
        }
        for group, places in groups.items()
    }
    changed["loss"] = _differences(loss_series(suite, found), loss_series(suite, base), bootstrap)
    changed["generation"] = _differences(generation_series(found), generation_series(base), bootstrap)
    if series := muse_series(suite, found):
        changed["muse"] = _differences(series, muse_series(suite, base), bootstrap)
    for name, answers in found.answers.items():
        pairs = [(now.correct, before.correct) for now, before in zip(answers, base.answers[name], strict=True)]
        changed["domains"][name] |= {"lost": pairs.count((False, True)), "gained": pairs.count((True, False))}
    if aligned := aligned_estimate(suite, found, base, bootstrap):
        changed["alignment"] = aligned.to_json()
    return changed


def aligned_estimate(suite: Suite, found: Measurement, base: Measurement, bootstrap: Bootstrap) -> Estimate | None:
    """Alignment of the edited model (methods of arXiv 2503.11127): retain and forget questions, each role pooled."""
    members = by_role(suite)
    drawn = []
    for number, role in enumerate(("retain", "forget")):  # roles share no facts, so they are resampled apart
        apart = replace(bootstrap, seed=bootstrap.seed + number)
        for measured in (found, base):
            series = pooled(members.get(role, []), measured).get("accuracy")
            if series is None:
                return None
            drawn.append(apart.replicates(series.sums, series.counts, series.clusters))
    value = alignment(*(value for value, _ in drawn))
    return interval(value, np.array([alignment(*values) for values in zip(*(rest for _, rest in drawn), strict=True)]))


def _described(
    members: list[Domain], measures: dict[str, Series], found: Measurement, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Estimates of one domain, or of all domains of a role."""
    entry = _estimates(measures, bootstrap)
    if "accuracy" in measures:
        entry["chance_distance"] = chance_distance(measures["accuracy"].estimate(bootstrap)).to_json()
        entry["letters"] = letter_shares([got.chosen for one in members for got in found.answers.get(one.name, [])])
    return entry | {"edited_share": _share([found.edited[domain.name] for domain in members])}


def _described_muse(suite: Suite, found: Measurement, bootstrap: Bootstrap) -> dict[str, Any]:
    """MUSE's measures, if any were taken."""
    entry = _estimates(muse_series(suite, found), bootstrap)
    if scores := found.least_likely:
        entry["privleak"] = leak(scores["forget"], scores["holdout"], suite.muse.reference, bootstrap).to_json()
    return {"muse": entry} if entry else {}


def _edited_shares(suite: Suite, found: Measurement) -> dict[str, float]:
    """Share of real tokens edited, by role of the held-out text, and in what was read and written to generate."""
    keys = {role: [corpus.key for corpus in suite.corpora if corpus.role == role] for role in ROLES}
    shares = {role: _share([found.edited[key] for key in members]) for role, members in keys.items() if members}
    return shares | ({"generation": _share([found.edited[WRITING]])} if WRITING in found.edited else {})


def _edit_norms(suite: Suite, found: Measurement) -> dict[str, float]:
    """L2 norm of the edit on an edited token, on average over all that was asked and read in each role."""
    places = {role: [corpus.key for corpus in suite.corpora if corpus.role == role] for role in ROLES}
    for domain in suite.domains:
        places[domain.role].append(domain.name)
    return {role: _norm([found.edited[place] for place in members]) for role, members in places.items() if members}


def _share(counted: list[Touched]) -> float:
    seen = sum(one.tokens for one in counted)
    return sum(one.edited for one in counted) / seen if seen else 0.0


def _norm(counted: list[Touched]) -> float:
    edited = sum(one.edited for one in counted)
    return math.fsum(one.norm for one in counted) / edited if edited else 0.0


def _estimates(measures: dict[str, Series], bootstrap: Bootstrap) -> dict[str, Any]:
    return {name: series.estimate(bootstrap).to_json() for name, series in measures.items()}


def _differences(now: dict[str, Series], before: dict[str, Series], bootstrap: Bootstrap) -> dict[str, Any]:
    return {name: series.minus(before[name]).estimate(bootstrap).to_json() for name, series in now.items()}
