"""``convert``: an SAE in any format that is read becomes one in a format that other tools read."""

from pathlib import Path

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.models.described import module_at, norms_take_mean
from sae_forge.outcome import Outcome
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.formats import table
from sae_forge.sae.formats.written import given, write
from sae_forge.sae.named import read_dictionary
from sae_forge.store.runs import CHECKPOINTS, Run


def convert(
    source: str,
    *,
    to: str,
    out: Path,
    model: str | None = None,
    layer: int | None = None,
    site: Site | None = None,
    allow_pickle: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """The folder of the same SAE in the format ``to``.

    Raises:
        ConfigError: there is no such format, it cannot say this SAE, or something is there already.
        CheckpointError, RemoteError: as ``sae.named.load_dictionary`` raises them.
    """
    entry = table.written(to)

    def take_mean() -> bool:
        if model is None:
            raise ConfigError(f"{source} asks for activations less their mean, as some models give; name --model")
        return norms_take_mean(model)

    named = read_dictionary(
        source,
        model=model or "",
        asked=None if layer is None else HookPoint(layer, site or "resid_post"),
        site=site,
        allow_pickle=allow_pickle,
        norms_take_mean=take_mean,
        progress=progress,
    )
    name = model or named.provenance.model
    known = (lambda: module_at(name, named.point)) if name else None
    sae = given(named.sae, named.point, model=name, module=known)  # pyright: ignore[reportArgumentType]
    folder = write(out, entry, sae)
    kept = "" if sae.k is None else f", k={sae.k}"
    return Outcome(
        run=Run(CHECKPOINTS),
        outputs={"sae": folder},
        metrics={
            "format": entry.name,
            "architecture": sae.architecture,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "k": sae.k,
            "reads": str(named.point),
            "model": name,
        },
        summary=f"{entry.name}: {sae.d_sae:,} {sae.architecture} latents{kept} on {named.point}\n{folder}",
        noted=False,
    )
