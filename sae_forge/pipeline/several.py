"""``--sae`` that stands for several: the verb's work on each of them, and one table of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sae_forge import ranks
from sae_forge.config.sae import SaeConfig
from sae_forge.errors import ForgeError, PeerError
from sae_forge.features.selection import Selection
from sae_forge.features.sparsity_files import read_sparsity
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.progress import Progress
from sae_forge.results.report import Report, load_report
from sae_forge.results.several import OneSAE, Several, measured_of
from sae_forge.sae.patterns import named_by
from sae_forge.store.runs import Run

ConfigT = TypeVar("ConfigT", bound=SaeConfig)
Stages = Mapping[str, Outcome]
"""The outcome of each verb that was at work on an SAE, by the verb."""


@dataclass
class Each:
    """The work on every SAE of a pattern: what came of it, or why nothing did."""

    pattern: str
    names: tuple[str, ...]
    done: dict[str, Stages] = field(default_factory=dict)
    failed: dict[str, ForgeError] = field(default_factory=dict)

    @classmethod
    def of(cls, config: SaeConfig) -> "Each":
        """The SAEs that the config's ``sae`` stands for; none where it is unset."""
        return cls(str(config.sae), named_by(config.sae) if config.sae is not None else ())

    @property
    def are_several(self) -> bool:
        """Whether there is a table to make."""
        return len(self.names) > 1

    def work(self, config: ConfigT, work: Callable[[ConfigT], Stages], progress: Progress) -> None:
        """Do it for one after the other; one that fails, on whichever rank, is told, and the others go on.

        Raises:
            ForgeError: all failed; why the first did.
            PeerError: a rank is gone.
        """
        for number, name in enumerate(self.names, 1):
            progress.say(f"SAE {number} of {len(self.names)}: {name}")
            try:
                self.done[name] = ranks.here().together(partial(work, replace(config, sae=name)))
            except PeerError:
                raise
            except ForgeError as error:
                progress.say(f"{name}: {error}")
                self.failed[name] = error
        if not self.done:
            raise next(iter(self.failed.values()))

    def metrics(self) -> dict[str, Any]:
        """JSON-ready, by the names of the SAEs."""
        told = {name: {verb: one.metrics for verb, one in stages.items()} for name, stages in self.done.items()}
        return {name: told.get(name, {"failed": str(self.failed.get(name, ""))}) for name in self.names}

    def table(self, run: Run) -> Several:
        """A row for each."""
        rows = [
            _row(name, self.done[name], run) if name in self.done else OneSAE(sae=name, failed=str(self.failed[name]))
            for name in self.names
        ]
        return Several(pattern=self.pattern, rows=tuple(rows))


def on_each(name: str, verb: Callable[[ConfigT, Bench], Outcome], config: ConfigT, bench: Bench) -> Outcome:
    """The outcome of a verb on the SAE of the config; where that stands for several, on each, with a table of them.

    The same call again finds what is there.
    """
    each = Each.of(config)
    if not each.are_several:
        return verb(replace(config, sae=each.names[0]) if each.names else config, bench)
    each.work(config, lambda one: {name: verb(one, bench.under(one))}, bench.progress)
    several = each.table(bench.run)
    with ranks.here().led() as first:
        outputs = {"several": several.save(bench.run.folder)} if first else {}
    last = next(reversed(each.done.values()))[name]
    return Outcome(
        run=bench.run,
        outputs=outputs,
        metrics={"saes": each.metrics()},
        summary=f"{len(each.done)} of {len(each.names)} SAEs measured",
        tables=(several.sheet(),),
        then=last.then,
    )


def _row(name: str, stages: Stages, run: Run) -> OneSAE:
    """What the files say that the verbs have written."""
    report: Report | None = None
    if "eval" in stages and "report" in stages["eval"].outputs:
        path = Path(str(stages["eval"].outputs["report"]))
        report = load_report(path)
        count, method = len(report.protocol["latents"]), report.protocol["selection"]
        sae, selected = str(report.protocol["sae"]), f"{count} by {method}"
    elif "features" in stages:
        path = Path(str(stages["features"].outputs["selection"]))
        selection = Selection.load(path)
        sae, selected = selection.sae, f"{len(selection.indices)} by {selection.method}"
        if selection.analysis is not None:
            selected += f", AUROC {selection.analysis.separation.auroc:.2f}"
    else:  # a part of an evaluation
        return OneSAE(sae=name, failed=next(iter(stages.values())).summary)
    folder = run.selections(run.folder / "saes" / sae)
    frequencies = read_sparsity(folder / "saebench")[0] if (folder / "saebench").is_dir() else None
    return OneSAE(
        sae=name,
        reads=sae.partition("/")[0],
        d_sae=None if frequencies is None else len(frequencies),
        l0=None if frequencies is None else float(frequencies.sum()),
        selected=selected,
        report=None if report is None else path.parent.relative_to(run.folder).as_posix(),
        measured=() if report is None else measured_of(report),
    )
