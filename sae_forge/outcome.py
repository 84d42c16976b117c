"""What a verb hands to whoever called it: where its artefacts are, its numbers, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_forge.results.sheets import Sheet
from sae_forge.store.remote import AnyPath
from sae_forge.store.runs import Run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one command."""

    run: Run
    outputs: Mapping[str, AnyPath]
    """Artefacts by name."""
    metrics: dict[str, Any]
    """JSON-ready numbers, in the shape the command line promises."""
    summary: str
    tables: tuple[Sheet, ...] = field(default=())
    then: str | Sequence[str] | None = None
    """The command to try next, or several."""
    exit_code: int = 0
    """What the process ends with: above 0 when the command did its work and found something wrong."""
    noted: bool = True
    """Whether the run's log keeps a line about it; False for a command that writes nothing."""

    def to_json(self, command: str, seconds: float) -> dict[str, Any]:
        """The one object ``--json`` prints."""
        return {
            "command": command,
            "run": str(self.run.folder),
            "outputs": {name: str(path) for name, path in self.outputs.items()},
            "seconds": round(seconds, 2),
            "metrics": self.metrics,
        }

    def log(self, command: str, seconds: float) -> None:
        """Note the finished command in the run's log, unless it leaves the folder as it is."""
        if not self.noted:
            return
        self.run.log(command, {"seconds": round(seconds, 2), "outputs": {k: str(v) for k, v in self.outputs.items()}})
