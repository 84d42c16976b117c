"""``saes``: which released SAEs can be had by name, for a model and a layer."""

from pathlib import Path

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import SITES
from sae_forge.outcome import Outcome
from sae_forge.results.sheets import Sheet
from sae_forge.sae import directory
from sae_forge.sae.directory import Entry
from sae_forge.sae.released import same_model
from sae_forge.store.runs import CHECKPOINTS, Run

SHOWN = 40
"""Rows that a person is shown; ``--json`` has all."""


def saes(
    words: str | None = None, *, model: str | None = None, layer: int | None = None, site: str | None = None
) -> Outcome:
    """The SAEs of SAELens' directory whose name holds ``words``, at that layer and site of that model.

    Raises:
        ConfigError: SAELens is not installed, or there is no such site.
    """
    if site is not None and site not in SITES:
        raise ConfigError(f"--site {site} is unknown; choose one of {', '.join(SITES)}")
    if not directory.is_installed():
        raise ConfigError("the directory of released SAEs is SAELens': pip install sae-forge[saelens]")
    listed = list(directory.entries())
    fitting = [each for each in listed if _fits(each, words, model, layer, site)]
    usable = [each for each in fitting if not each.reason]
    rows = tuple(
        (each.name, each.model, str(each.point or ""), each.reason or "a pickle: --allow_pickle" * each.needs_pickle)
        for each in sorted(fitting, key=lambda each: bool(each.reason))[:SHOWN]
    )
    facts = [
        {"sae": each.name, "place": str(each.reference), "reads": str(each.point) if each.point else None}
        | {"model": each.model, "reason": each.reason, "needs_pickle": each.needs_pickle}
        for each in fitting
    ]
    said = f"{len(fitting):,} SAEs, {len(usable):,} of which --sae opens by name"
    if not fitting:
        said = f"none of {len(listed):,} SAEs fits; give fewer words, or leave out --model, --layer or --site"
    return Outcome(
        run=Run(CHECKPOINTS),
        outputs={},
        metrics={"found": len(fitting), "usable": len(usable), "saes": facts},
        summary=f"{said}{f'; the first {SHOWN} are shown' if len(fitting) > SHOWN else ''}",
        tables=(Sheet("released SAEs", ("--sae", "model", "reads", "to know"), rows),) if rows else (),
        then=f"sae-forge features --model {model or usable[0].model} --sae {usable[0].name} --forget YOUR_TEXT"
        if usable
        else None,
        noted=False,
    )


def _fits(each: Entry, words: str | None, model: str | None, layer: int | None, site: str | None) -> bool:
    point = each.point
    return (
        all(word in each.name.lower() for word in (words or "").lower().split())
        and (model is None or same_model(each.model, Path(model).name))
        and (layer is None or (point is not None and point.layer == layer))
        and (site is None or (point is not None and point.site == site))
    )
