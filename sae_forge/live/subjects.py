"""What a model is watched under: methods by name, at the settings that a report measured, else at their own.

One bench for a prompt, for many, and for a conversation in which the edit is switched and changed between answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sae_forge.errors import ConfigError, did_you_mean
from sae_forge.interventions.edit import Edit
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.materials import Materials
from sae_forge.methods.method import Method, Settings, Wrapper, latents_in_words
from sae_forge.methods.subjects import AsItIs, Edited, Subject
from sae_forge.methods.table import METHODS, methods_of
from sae_forge.results.report import Report

BASELINE = "baseline"
ALL = "all"
"""Every edit that the report has; without one every edit there is."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """The methods of one run, ready to be put on its model."""

    materials: Materials
    report: Report | None = None
    """Where settings are looked up; None: nothing was measured yet."""
    table: Sequence[Method | Wrapper] = METHODS

    def named(self, names: Sequence[str]) -> dict[str, Subject]:
        """Subjects by their title, in the order of the names; one name may stand for several settings.

        Raises:
            ConfigError: a name is no method.
            DataError: a method lacks what it is made from.
        """
        return {title: subject for name in names for title, subject in self._of(name).items()}

    def scaled(self, latents: Sequence[int], factor: float) -> dict[str, Subject]:
        """Negative scaling of these latents of the SAE, under the words of a report."""
        materials = self.materials
        if outside := [latent for latent in latents if not 0 <= latent < materials.selection.d_sae]:
            raise ConfigError(f"latent {outside[0]} is outside an SAE of {materials.selection.d_sae} latents")
        scaled = replace(scale(tuple(dict.fromkeys(latents)), factor), tokens=materials.config.tokens)
        edit = Edit(materials.point, materials.sae, scaled, materials.sink_norm)
        return {f"scale {factor:g} on {latents_in_words({'num_features': len(edit.latents)})}": Edited((edit,))}

    def edits(self) -> list[str]:
        """Methods that edit the running model and can be made here; of a report those that it has."""
        hooks = [one for one in self.table if isinstance(one, Method) and one.kind == "hook"]
        measured = {row.name for row in self.report.rows} if self.report else None
        possible = [one.name for one in hooks if one.needs(self.materials) is None]
        return [name for name in possible if measured is None or name in measured]

    def _of(self, name: str) -> Mapping[str, Subject]:
        if name == BASELINE:
            return {BASELINE: AsItIs()}
        if name == ALL:
            return self.named(self.edits())
        known = [one for one in self.table if isinstance(one, Method)]
        # a wrapped method is named by its parts: rmu+relearned
        method = next((one for one in (*known, *self._wrapped(name)) if one.name == name), None)
        if method is None:
            possible = [one.name for one in known]
            raise ConfigError(
                f"--methods {name}: no such method{did_you_mean(name, possible)}; choose among {', '.join(possible)}, "
                f"{BASELINE} and {ALL}"
            )
        if error := method.needs(self.materials):
            raise error
        return {method.said(settings): method.build(settings, self.materials) for settings in self._settings(method)}

    def _wrapped(self, name: str) -> Sequence[Method]:
        parts = name.split("+")
        return methods_of(parts, self.table) if {one.name for one in self.table}.issuperset(parts) else ()

    def _settings(self, method: Method) -> list[Settings]:
        """What the report measured the method at, each once; else what its flags say."""
        told = self.report.rows if self.report else ()
        # a latent alone is a question that the eval was asked, and no setting of the method
        rows = [row for row in told if row.name == method.name and "latent" not in row.settings]
        # ``requested`` is how many latents were asked for where fewer are selected, and no setting of a method
        measured = [{name: value for name, value in row.settings.items() if name != "requested"} for row in rows]
        if measured:
            return measured
        size = min(max(self.materials.config.num_features), len(self.materials.selection.indices))
        return method.from_flags(size, self.materials)
