"""Items turned into the numbers of a report: estimates by domain, by role and under headings, and paired changes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sae_forge.config.evaluate import EvalConfig
from sae_forge.results.measure import Measure
from sae_forge.results.report import SHIFT_RATIO, SHIFTED, Cell, Change, Domain, TaskWords
from sae_forge.statistics.answers import CHANCE, LETTERS, alignment, chance_distance, letter_shares
from sae_forge.statistics.bootstrap import Bootstrap, interval
from sae_forge.statistics.estimate import Estimate
from sae_forge.statistics.proportions import unanimous
from sae_forge.study.measure import Answers, Measurement, Touched
from sae_forge.tasks.item import ROLES, Item
from sae_forge.tasks.task import Asked, Task, standing_of


@dataclass(frozen=True)
class Heading:
    """What rows have beside domains and roles."""

    standing: bool
    """Whether it is there with nothing under it too."""
    derived: bool
    """Whether it says no more than another does, so that neither changes nor controls have it."""


Headings = Mapping[str, Heading]
"""Those of a report's rows, in their order."""


@dataclass(frozen=True)
class Series:
    """One measure of many items: totals, what they are counted over, and what is resampled together."""

    sums: np.ndarray
    counts: np.ndarray
    clusters: tuple[str, ...]
    yes_or_no: bool = False
    """Whether each item is 0 or 1."""
    paired: bool = False
    """Whether it is what another takes from it."""

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """The measure's mean; of items that are all alike in a yes or no, between the bounds that Wilson gives."""
        drawn = bootstrap.ratio(self.sums, self.counts, self.clusters)
        # resampling items that are all alike gives an interval of no width, as if nothing else were possible
        if self.yes_or_no and drawn.low == drawn.high and drawn.value in (-1, 0, 1):
            return unanimous(drawn.value, len(set(self.clusters)), paired=self.paired)
        return drawn

    def minus(self, other: "Series") -> "Series":
        """The paired difference to the same items measured otherwise."""
        return replace(self, sums=self.sums - other.sums, paired=True)

    @property
    def mean(self) -> float:
        """The measure's value."""
        return float(self.sums.sum() / self.counts.sum())


@dataclass(frozen=True)
class Pool:
    """All items of one measure that are taken together."""

    measure: Measure
    items: tuple[Item, ...]

    @property
    def series(self) -> Series | None:
        """Their values; None where the measure is no mean of them."""
        if self.measure.aggregate is not None:
            return None
        kept = [(item.cluster, of) for item in self.items if (of := self.measure.of(item)) is not None]
        values = np.array([value for _, (value, _) in kept], dtype=float)
        weights = np.array([weight for _, (_, weight) in kept], dtype=float)
        return Series(values, weights, tuple(cluster for cluster, _ in kept), self.measure.yes_or_no)

    @property
    def chance(self) -> float | None:
        """Where guessing lies, on average over the items."""
        known = [
            chance for item in self.items if (chance := item.values.get("chance", self.measure.chance)) is not None
        ]
        return float(np.mean(known)) if known else None

    def difference(self, other: "Pool") -> Series | None:
        """The paired difference to the same items measured otherwise, over those that have a value in both."""
        if self.measure.aggregate is not None or other.measure.aggregate is not None:
            return None
        of = self.measure.of
        both = [
            (now, then)
            for now, then in zip(self.items, other.items, strict=True)
            if of(now) is not None and of(then) is not None
        ]
        if not both:
            return None
        kept, before = zip(*both, strict=True)
        now, then = replace(self, items=kept).series, replace(other, items=before).series
        return now.minus(then) if now is not None and then is not None else None

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """The measure of these items."""
        if self.measure.aggregate is not None:
            return self.measure.aggregate(self.items, bootstrap)
        assert self.series is not None
        return self.series.estimate(bootstrap)


def by_domain(answers: Sequence[Answers]) -> dict[str, list[Answers]]:
    """The answers that stand by domain, in the order of the domains."""
    places: dict[str, list[Answers]] = {}
    for one in answers:
        if one.asked.task.group is None:
            places.setdefault(one.asked.domain, []).append(one)
    return places


def by_role(answers: Sequence[Answers]) -> dict[str, list[Answers]]:
    """The answers that stand by domain, all domains of each role that has any."""
    placed = [one for one in answers if one.asked.task.group is None]
    # a fact counts once a role, so a domain with more items weighs more: roles are pooled, not averaged over domains
    members = {role: [one for one in placed if one.asked.role == role] for role in ROLES}
    return {role: own for role, own in members.items() if own}


def pooled(answers: Iterable[Answers]) -> dict[str, Pool]:
    """What these answers measured, taken together, by measure; of two measures of one name the later task's."""
    items: dict[Measure, list[Item]] = {}
    for one in sorted(answers, key=lambda one: one.asked.rank):
        for measure in one.asked.measured:
            items.setdefault(measure, []).extend(one.items)
    # a measure of no item at all would be a mean over nothing, so it is left out rather than 0
    return {
        measure.name: Pool(measure, tuple(kept))
        for measure, kept in items.items()
        if measure.complete(kept)
        and (measure.aggregate is not None or any(measure.of(item) is not None for item in kept))
    }


def under_headings(answers: Sequence[Answers]) -> dict[str, dict[str, Pool]]:
    """What stands under headings of its own, by heading and then by measure, role and corpus.

    A measure called as its heading goes by the role alone, and, where a role has several texts, by each of them too.
    """
    headings: dict[str, dict[str, Pool]] = {}
    grouped = [one for one in answers if one.asked.task.group is not None]
    tasks = {one.asked.task.name: one.asked.task for one in sorted(grouped, key=lambda one: one.asked.rank)}
    for task in tasks.values():
        mine = [one for one in grouped if one.asked.task.name == task.name]
        for measure in task.measures:
            heading = headings.setdefault(measure.heading or str(task.group), {})
            asked = [one for one in mine if measure in one.asked.measured]
            for key, members in _places(measure, measure.heading or str(task.group), asked):
                if (pool := pooled(members).get(measure.name)) is not None:
                    heading[key] = pool
    return headings


def _places(measure: Measure, heading: str, answers: list[Answers]) -> Iterator[tuple[str, list[Answers]]]:
    # keys: measure, measure_role, role where the measure is called as its heading, and any of them with /domain
    for role in (*ROLES, ""):
        members = [one for one in answers if one.asked.role == role]
        named = () if measure.name == heading and role else (measure.name,)
        key = "_".join((*named, *([role] if role else [])))
        domains = dict.fromkeys(one.asked.domain for one in members)
        if members:
            yield key, members
        if len(domains) > 1:
            for domain in domains:
                yield f"{key}/{domain}", [one for one in members if one.asked.domain == domain]


def main_pool(answers: Iterable[Answers]) -> Pool | None:
    """The first measure of what a sweep is tuned on, if it was asked: of questions, their accuracy."""
    tuned = [one for one in answers if one.asked.task.tuned_on]
    if not tuned:
        return None
    measure = min(tuned, key=lambda one: one.asked.rank).asked.measured[0]
    return Pool(measure, tuple(item for one in tuned if one.asked.measured[0] == measure for item in one.items))


def headings_of(asked: Sequence[Asked], tasks: Sequence[Task]) -> Headings:
    """Those that stand in every report of these tasks, then those of what was asked."""
    standing = [heading for task in tasks for heading in standing_of(task).headings]
    grouped = [one for one in asked if one.task.group is not None]
    measures = [measure for task in (*tasks, *(one.task for one in grouped)) for measure in task.measures]
    derived = {measure.heading for measure in measures if measure.derived}
    asked_for = (measure.heading or str(one.task.group) for one in grouped for measure in one.measured)
    return {name: Heading(name in standing, name in derived) for name in dict.fromkeys((*standing, *asked_for))}


def described_tasks(measured: Measurement) -> tuple[TaskWords, ...]:
    """The report's ``tasks``: those that measured something, with their measures by the names that rows give them."""
    headings, described = under_headings(measured), []
    for task in {one.asked.rank: one.asked.task for one in sorted(measured, key=lambda one: one.asked.rank)}.values():
        measures = list(task.measures)
        if task.group is not None:
            # a row's keys are by measure and role, so that is how the report lists the measures of a heading
            kept = {key: pool.measure for key, pool in headings[task.group].items() if pool.measure in measures}
            measures = [m if m.name == task.group else replace(m, name=key) for key, m in kept.items()]
        shown = tuple(dict.fromkeys(measures))
        described.append(TaskWords(name=task.name, title=task.title, group=task.group, measures=shown))
    return tuple(described)


def described_domains(asked: Sequence[Asked], tasks: Sequence[Task]) -> dict[str, Domain]:
    """The report's ``domains``: role, and how much was asked, with the ids, so that another run can ask the same."""
    placed = [one for one in asked if one.task.group is None]
    standing = (f"{kind}s" for task in tasks if (kind := standing_of(task).kind))
    kinds = dict.fromkeys((*standing, *(one.counted_as for one in placed)))
    described: dict[str, Domain] = {}
    for name in dict.fromkeys(one.domain for one in placed):
        mine = [one for one in placed if one.domain == name]
        ids = {kind: tuple(name for one in mine if one.counted_as == kind for name in one.ids) for kind in kinds}
        described[name] = Domain(
            role=mine[0].role,  # pyright: ignore[reportArgumentType] (load_asked refuses others)
            items=len(mine[0].ids),
            facts=len({fact for one in mine for fact in one.facts}),
            ids=ids,
            asked={kind: len(listed) for kind, listed in ids.items()},
        )
    return described


def describe(measured: Measurement, headings: Headings, bootstrap: Bootstrap) -> dict[str, Any]:
    """The fields of a ``Row`` that were measured, apart from its change."""
    pools = under_headings(measured)
    return {
        "domains": {name: _cell(answers, bootstrap) for name, answers in by_domain(measured).items()},
        "roles": {role: _cell(answers, bootstrap) for role, answers in by_role(measured).items()},
        "groups": {heading: _estimates(pools.get(heading, {}), bootstrap) for heading in headings},
        **_edited(measured),
    }


def change(measured: Measurement, base: Measurement, headings: Headings, bootstrap: Bootstrap) -> Change:
    """Paired differences to the baseline, by the same keys; nats, shares and rates as they are."""
    now, before = under_headings(measured), under_headings(base)
    ratios = shift_ratios(measured, base, bootstrap)
    groups = {
        name: differs
        for name, heading in headings.items()
        # a heading that says no more than another would count a change twice
        if (differs := differences(now.get(name, {}), before.get(name, {}), bootstrap))
        or (heading.standing and not heading.derived)
    }
    domains, domains_before, roles_before = {}, by_domain(base), by_role(base)
    for name, answers in by_domain(measured).items():
        others = domains_before[name]
        scored = [  # of each item that is right or wrong: whether it is right now, and whether it was before
            (item.values.get("correct"), earlier.values.get("correct"))
            for one, other in zip(answers, others, strict=True)
            for item, earlier in zip(one.items, other.items, strict=True)
        ]
        pairs = [(bool(right), bool(then)) for right, then in scored if right is not None and then is not None]
        domains[name] = Cell(
            estimates=differences(pooled(answers), pooled(others), bootstrap)
            | ({SHIFT_RATIO: ratios[name]} if name in ratios else {}),
            lost=pairs.count((False, True)) if pairs else None,
            gained=pairs.count((True, False)) if pairs else None,
        )
    return Change(
        domains=domains,
        roles={
            role: Cell(estimates=differences(pooled(answers), pooled(roles_before[role]), bootstrap))
            for role, answers in by_role(measured).items()
        },
        groups=groups,
        alignment=aligned_estimate(measured, base, bootstrap),
    )


def shift_ratios(measured: Measurement, base: Measurement, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """How many times as far the log-prob of what should follow moved on what is forgotten as in each other domain.

    Only where a domain's own shift is told apart from none: else the ratio has no upper end. Domains share no facts, so
    each is resampled by itself.
    """
    drawn: dict[str, tuple[float, np.ndarray]] = {}
    places = {"": by_role(measured).get("forget", [])} | by_domain(measured)
    earlier = {"": by_role(base).get("forget", [])} | by_domain(base)
    for number, (name, answers) in enumerate(places.items()):
        if name and (not answers or answers[0].asked.role == "forget"):
            continue
        now, before = pooled(answers).get(SHIFTED), pooled(earlier[name]).get(SHIFTED)
        if now is not None and before is not None and (moved := now.difference(before)) is not None:
            apart = replace(bootstrap, seed=bootstrap.seed + number)
            drawn[name] = apart.replicates(moved.sums, moved.counts, moved.clusters)
    if "" not in drawn:
        return {}
    (whole, forgotten), ratios = drawn.pop(""), {}
    for name, (value, replicates) in drawn.items():
        own = interval(value, replicates)
        if own.low > 0 or own.high < 0:
            kept = replicates != 0  # where 2.5 % may have the other sign a few may be none at all
            ratios[name] = interval(whole / value, forgotten[kept] / replicates[kept])
    return ratios


def aligned_estimate(measured: Measurement, base: Measurement, bootstrap: Bootstrap) -> Estimate | None:
    """Alignment of the edited model (methods of arXiv 2503.11127): retain and forget questions, each role pooled."""
    drawn, chances = [], []
    for number, role in enumerate(("retain", "forget")):  # roles share no facts, so they are resampled apart
        apart = replace(bootstrap, seed=bootstrap.seed + number)
        for one in (measured, base):
            pool = main_pool(by_role(one).get(role, []))
            if pool is None or (series := pool.series) is None:
                return None
            drawn.append(apart.replicates(series.sums, series.counts, series.clusters))
        chances.append(pool.chance or 0.0)
    chance = {"retain_chance": chances[0], "forget_chance": chances[1]}
    # in the order of alignment's arguments: retain now and before, then forget now and before
    every = [alignment(*values, **chance) for values in zip(*(rest for _, rest in drawn), strict=True)]
    return interval(alignment(*(value for value, _ in drawn), **chance), np.array(every))


def _cell(answers: list[Answers], bootstrap: Bootstrap) -> Cell:
    """Estimates of one domain, or of all domains of a role."""
    estimates, guessing, letters = _estimates(pooled(answers), bootstrap), None, None
    main = main_pool(answers)
    if main is not None and (chance := main.chance) is not None:
        estimates["chance_distance"] = chance_distance(main.estimate(bootstrap), chance)
        guessing = {main.measure.name: chance} if chance != main.measure.chance else None
    chosen = [item.values for one in answers for item in one.items if "chosen" in item.values]
    if chosen:
        options = max(len(values["option_logprobs"]) for values in chosen)  # pyright: ignore[reportArgumentType]
        letters = letter_shares([values["chosen"] for values in chosen], LETTERS[:options])  # pyright: ignore
    edited = _share([one.touched for one in answers])
    return Cell(estimates=estimates, chance=guessing, letters=letters, edited_share=edited)


def _edited(measured: Measurement) -> dict[str, dict[str, float]]:
    """Share of real tokens edited, by what they are counted under, and the edit's mean L2 norm on one, by role."""
    names = dict.fromkeys(one.asked.counted for one in measured if one.asked.counted)
    counted = {name: [one.touched for one in measured if one.asked.counted == name] for name in names}
    norms = {}
    for role in ROLES:  # of all that was read or asked in a role, under headings or not
        touched = [one.touched for one in measured if one.asked.task.group is None and one.asked.role == role]
        touched += counted.get(role, [])
        edited = sum(one.edited for one in touched)
        if touched:
            norms[role] = math.fsum(one.norm for one in touched) / edited if edited else 0.0
    shares = {name: _share(touched) for name, touched in counted.items()}
    return {"edited_share": shares, "edit_norm": norms}


def _share(touched: list[Touched]) -> float:
    seen = sum(one.tokens for one in touched)
    return sum(one.edited for one in touched) / seen if seen else 0.0


def _estimates(pools: Mapping[str, Pool], bootstrap: Bootstrap) -> dict[str, Estimate]:
    return {name: pool.estimate(bootstrap) for name, pool in pools.items()}


def differences(now: Mapping[str, Pool], before: Mapping[str, Pool], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Paired differences of every measure that is a mean, by the same keys."""
    return {
        name: series.estimate(bootstrap)
        for name, pool in now.items()
        if name in before and (series := pool.difference(before[name])) is not None
    }


def protocol_of(asked: Iterable[Asked], tasks: Iterable[Task], config: EvalConfig) -> dict[str, Any]:
    """What the tasks say of how they asked, or would have, brought together."""
    together: dict[str, Any] = {}
    said = [standing_of(task).protocol(config) for task in tasks]
    for protocol in (*said, *(one.protocol for one in sorted(asked, key=lambda one: one.rank))):
        for name, value in protocol.items():
            together[name] = {**together.get(name, {}), **value} if isinstance(value, Mapping) else value
    return together


def chance_of(measured: Measurement) -> float:
    """Where guessing lies for what is forgotten; that of four options, where nothing that can be guessed was asked."""
    pool = main_pool(by_role(measured).get("forget", []) or measured)
    return CHANCE if pool is None or pool.chance is None else pool.chance
