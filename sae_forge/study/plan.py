"""What a report measures, row by row: the baseline, every method at its settings, each edit beside its controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sae_forge.errors import ConfigError
from sae_forge.features.selection import Selection
from sae_forge.interventions.edit import Edit
from sae_forge.methods.edits import scale
from sae_forge.methods.materials import Materials
from sae_forge.methods.method import Method, Settings, titled
from sae_forge.methods.subjects import AsItIs, Edited, Subject
from sae_forge.methods.table import controlled
from sae_forge.progress import SILENT, Progress
from sae_forge.study.controls import CONTROL, controls_of, edits_every_token


@dataclass(frozen=True)
class Plan:
    """One row of the report to be."""

    name: str
    settings: Settings
    subject: Subject
    seed: int | None = None
    title: str = ""
    """Name and settings in words."""
    at_rest: bool = False
    """It puts latents to rest: a control itself, which gets none."""
    everywhere: bool = False
    """It edits every token."""

    @property
    def kind(self) -> Literal["baseline", "hook", "weights"]:
        """What is done to the model: nothing, its activations edited, or its weights trained."""
        if self.subject.changes_weights:
            return "weights"
        return "hook" if self.subject.edits else "baseline"


def plans_of(
    materials: Materials,
    methods: Sequence[Method],
    selections: Mapping[str, Selection],
    *,
    chosen: Mapping[str, Settings] | None = None,
    also: Sequence[Edit] = (),
    progress: Progress = SILENT,
) -> list[Plan]:
    """Every row of an evaluation, in the report's order; ``chosen`` and ``also`` as :func:`iter_plans` takes them."""
    return [
        *iter_plans(materials, methods, chosen, also, progress),
        *_of_selections(materials, selections),
        *_of_each_latent(materials, methods),
    ]


def iter_plans(
    materials: Materials,
    methods: Sequence[Method],
    chosen: Mapping[str, Settings] | None = None,
    also: Sequence[Edit] = (),
    progress: Progress = SILENT,
) -> Iterator[Plan]:
    """The rows to measure: the baseline, then every method at its settings, each edit with its controls.

    Where fewer latents were selected than asked for, those there are are taken and both numbers recorded.

    Args:
        chosen: Settings of each method that a sweep tuned; None: those of the flags.
        also: Edits that are handed in ready.
    """
    # first, since every change is taken from it and it records the tape that spares all others the layers below
    yield Plan("baseline", {}, AsItIs(), title="baseline")
    rows = list(
        _from_flags(materials, methods, progress) if chosen is None else _from_sweep(materials, methods, chosen)
    )
    for edit in also:
        name, settings, subject = edit.intervention.name, {"given": len(edit.intervention.written)}, Edited((edit,))
        everywhere = edits_every_token(subject)
        rows.append(Plan(name, settings, subject, title=titled(name)(settings), everywhere=everywhere))
    yield from rows
    if not controlled(materials.config.methods):
        return
    for row in rows:
        if row.at_rest or not isinstance(row.subject, Edited):
            continue
        for kind, seed, control in controls_of(row.subject, materials, everywhere=row.everywhere):
            settings = {"of": row.name, **row.settings, "kind": kind}
            yield Plan(CONTROL, settings, control, seed, f"{CONTROL} {kind} for {row.title}")


def planned(method: Method, settings: Settings, materials: Materials, **also: Any) -> Plan:
    """A method at these settings as a row; ``also`` stands beside them in the report and decides nothing."""
    subject, shown = method.build(settings, materials), settings | also
    everywhere = isinstance(subject, Edited) and (method.everywhere or edits_every_token)(subject)
    return Plan(method.name, shown, subject, title=method.said(shown), at_rest=method.at_rest, everywhere=everywhere)


def _of_selections(materials: Materials, selections: Mapping[str, Selection]) -> Iterator[Plan]:
    """Negative scaling by the first scale under every selection, for as many latents as the smallest has."""
    size = min((len(one.indices) for one in selections.values()), default=0)
    size = min(size, max(materials.config.num_features))
    for name, selection in selections.items():
        settings = {"selection": name, "num_features": size, "scale": materials.config.ablation_scale[0]}
        yield planned(scale.METHOD, settings, replace(materials, selection=selection))


def _of_each_latent(materials: Materials, methods: Sequence[Method]) -> Iterator[Plan]:
    """The first edit of latents that was named, on one selected latent at a time; controls are of other latents alone.

    Raises:
        ConfigError: no method that was named edits latents.
    """
    wanted = materials.selection.latents[: materials.config.each_latent]
    if not wanted:
        return
    method = next((one for one in methods if _of_latents(one, materials)), None)
    if method is None:
        raise ConfigError("--each_latent needs an edit of latents among --methods, such as clamp or scale")
    for latent in wanted:
        own = replace(materials, selection=replace(materials.selection, latents=(latent,)))
        plan = planned(method, method.from_flags(1, own)[0], own, latent=latent.index)
        plan = replace(plan, title=f"{plan.title}, latent {latent.index}")
        yield plan
        if not controlled(materials.config.methods) or not isinstance(plan.subject, Edited):
            continue
        alone = replace(own, config=replace(own.config, controls=("latents",)))
        for kind, seed, control in controls_of(plan.subject, alone, everywhere=plan.everywhere):
            settings = {"of": plan.name, **plan.settings, "kind": kind}
            yield Plan(CONTROL, settings, control, seed, f"{CONTROL} {kind} for {plan.title}")


def _of_latents(method: Method, materials: Materials) -> bool:
    if method.kind != "hook" or method.at_rest or method.parts or method.needs(materials) is not None:
        return False
    return any("num_features" in settings for settings in method.from_flags(1, materials))


def _from_sweep(materials: Materials, methods: Sequence[Method], chosen: Mapping[str, Settings]) -> Iterator[Plan]:
    for method in methods:
        # a method made of others was not tuned itself: it takes what was chosen for each of them
        names = [part.name for part in method.parts or (method,)]
        if all(name in chosen for name in names) and method.needs(materials) is None:
            parts = [chosen[name] for name in names]
            settings = method.joined(parts, materials) if method.joined else parts[0]
            yield planned(method, settings, materials)


def _from_flags(materials: Materials, methods: Sequence[Method], progress: Progress) -> Iterator[Plan]:
    config, have = materials.config, len(materials.selection.indices)
    for wanted in config.num_features:
        if wanted > have:
            progress.say(f"{wanted} latents were asked for and {have} are selected; taking those")
    # two numbers that are both cut to what is selected are one row
    sizes = {min(wanted, have): wanted for wanted in sorted(config.num_features)}
    for method in methods:
        if method.needs(materials):
            continue
        seen: list[Settings] = []
        for size, wanted in sizes.items():
            for settings in method.from_flags(size, materials):
                if settings in seen:  # a method that takes no latents is the same for every number of them
                    continue
                seen.append(settings)
                cut = {"requested": wanted} if wanted > size and "num_features" in settings else {}
                yield planned(method, settings, materials, **cut)
