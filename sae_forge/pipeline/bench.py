"""One model on one run folder: loaded when first needed, and shared by the verbs that need it."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sae_forge import ranks
from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import described
from sae_forge.config.generate import GenerateConfig
from sae_forge.config.model import ModelConfig, plain, shown
from sae_forge.config.push import PushConfig
from sae_forge.config.report import ReportConfig
from sae_forge.config.train import TrainConfig
from sae_forge.errors import CheckpointError, ConfigError, DataError
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.models.described import norms_take_mean
from sae_forge.models.families import read_family
from sae_forge.models.hooks import unreached
from sae_forge.models.loading import LanguageModel, load_model, load_tokenizer, shown_name
from sae_forge.models.opening import Opening
from sae_forge.models.tokens import control_strings
from sae_forge.pipeline.known import ConfigT, as_collected
from sae_forge.progress import SILENT, Progress
from sae_forge.results.report import load_report
from sae_forge.sae.named import NamedSAE, load_dictionary
from sae_forge.settings import resolve
from sae_forge.store import weights
from sae_forge.store.runs import Run
from sae_forge.study.settings import catalogue_of, eval_config, features_config


class Bench:
    """One model on one run folder: loaded when first needed, and shared by the verbs that need it."""

    def __init__(self, config: ModelConfig, progress: Progress = SILENT) -> None:
        self.config, self.progress = config, progress
        self._settled: ModelConfig | None = None
        self.run = Run(config.run_folder, config.shards_dir if isinstance(config, CollectConfig) else None)

    def under(self, config: ModelConfig) -> "Bench":
        """The same bench under other settings of the same model; what is loaded stays loaded."""
        other = Bench(config, self.progress)
        other.__dict__ |= {name: self.__dict__[name] for name in ("lm", "tokenizer") if name in self.__dict__}
        return other

    def settle(self, config: ConfigT) -> ConfigT:
        """The config by which the bench works from here on: what nobody spelled out is as the run was collected."""
        if config is not self._settled:
            config = as_collected(config, self.run, self.progress)
            self.config = self._settled = config
        return config

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model, on its device; its texts open as this run has recorded, if it has."""
        config = self.config
        with self.progress.task(f"load {config.model}", None, ""):
            lm = load_model(
                config.model,
                revision=config.revision,
                dtype=config.dtype,
                device=config.model_device,
                device_map=config.device_map,
                quantize=config.quantize,
                family=None if config.family is None else read_family(config.family),
            )
        if unread := control_strings(lm):
            self.progress.say(
                f"the tokenizer of {lm.name} takes {', '.join(unread[:5])} for control tokens where a text spells them"
            )
        if not self.run.exists:
            return lm
        if (recorded := self.run.opening) is None:
            opening = Opening.before(lm.tokenizer, lm.family)
        else:
            opening = Opening.read(recorded, str(self.run.folder / "run.json"))
        return replace(lm, opens_as=opening)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; the weights are not loaded for it."""
        if "lm" in self.__dict__:
            return self.lm.tokenizer
        return load_tokenizer(self.config.model, revision=self.config.revision)

    def decode(self, token_ids: list[int]) -> str:
        """Text of some tokens."""
        return str(self.tokenizer.decode(token_ids))

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """The hook points asked for, else the middle layer's."""
        return self.config.hook_points or (HookPoint(self.lm.n_layers // 2, self.config.site),)

    def sae(self, named: str | None, *, partly: bool = False, keeps: bool = True) -> NamedSAE:
        """The SAE that was named, else the newest at the hook point, on its device.

        Args:
            partly: A few of its latents will do, so it stays in its file where those can be read alone.
            keeps: One made elsewhere leaves a pointer in the run; else nothing is written.
        """
        points = self.config.hook_points or ()
        if len(points) > 1:
            raise ConfigError(f"--layer {','.join(str(point.layer) for point in points)}: give one layer here")
        asked = points[0] if points else None
        named_sae = load_dictionary(
            named or self.run.newest_sae(asked, self.next("train")),
            self.run,
            model=shown_name(self.config.model),
            asked=asked,
            site=self.config.site if "site" in self.config.spelled else None,
            spelled=self.config.spelled,
            norms_take_mean=lambda: norms_take_mean(self.config.model, revision=self.config.revision),
            device=device_of(self.config.sae_device),
            allow_pickle=getattr(self.config, "allow_pickle", False),
            partly=partly,
            keeps=keeps,
            progress=self.progress,
        )
        trained_on = named_sae.provenance.model
        if named_sae.provenance.weights and trained_on != shown_name(self.config.model):
            self.require_same_model(named_sae)
            self.progress.say(
                f"{named_sae.folder.name} was trained on {trained_on}, and {self.config.model} has its weights"
            )
        return named_sae

    def require_same_model(self, named: NamedSAE) -> None:
        """The loaded model is as wide as the SAE reads, and has the weights it was trained on where those are known.

        Says it where an edit there would reach no later token.

        Raises:
            CheckpointError: it is of another width, or has other weights, or the SAE reads a module whose output the
                model norms or multiplies before it is added.
        """
        if named.module and not self.lm.family.adds_as_given(named.point.site):
            raise CheckpointError(
                f"{named.name} reads what the module {named.module} gives, and {self.config.model} norms or multiplies "
                f"that before it is added; {named.point} is what is added, so it is another place"
            )
        width = self.lm.width(named.point)
        if named.sae.d_in != width:
            raise CheckpointError(
                f"{named.name} reads activations {named.sae.d_in} wide, but {self.config.model} is {width} wide "
                f"at {named.point}; name an SAE of this model with --sae, or train one"
            )
        weights.require_same(
            named.provenance.weights,
            self.lm.weights_as(named.provenance.weights),
            f"{named.name} was trained on {named.provenance.model}",
            self.config.model,
            kind=CheckpointError,
            advice="name the same --revision, or train it again",
        )
        if words := unreached(self.lm, named.point):
            self.progress.say(words)

    def selection(self, named: Path | None, sae: Path) -> Path:
        """The selection file that was named, else the newest made for this SAE."""
        return named or self.run.newest_selection(sae, self.next("features"))

    def evaluated(self, sae: Path) -> tuple[Path | None, Path | None]:
        """The newest report on an SAE and the selection it measured; without a report, the newest selection alone.

        Raises:
            DataError: that selection is gone; names the command that measures another.
        """
        report = self.run.newest_eval(sae)
        if report is None:
            return None, self.run.selection_of(sae)
        measured = load_report(report / "eval.json").protocol.get("latents")
        for path in self.run.selections(sae).glob("*.json"):
            with suppress(DataError):  # one of an older format is not what this report measured
                if list(Selection.load(path).indices) == measured:
                    return report, path
        raise DataError(f"the selection that {report} measured is gone; measure one anew with: {self.next('eval')}")

    def next(self, command: str, *words: str) -> str:
        """The command to try next on this run, working as it is printed.

        It repeats what was named and the command takes too, but for what the run knows: how it was collected.

        Args:
            words: What the command takes beside its settings.
        """
        config, known = self.config, catalogue_of(self.config)
        kind = self._kind(command)
        recorded = {name for name, said in described(CollectConfig).items() if "shards" in said.decides}
        named = [name for name in described(kind) if name in config.spelled - recorded - _NOT_REPEATED]
        flags = {name: getattr(config, name) for name in ("model", "run_dir", *named)}
        if command not in _OF_SEVERAL_LAYERS and "layer" in flags:
            flags["layer"] = flags["layer"][:1]
        if hasattr(kind, "catalogue") and known.plugins:
            flags["plugin"] = ",".join(name for name, _ in known.plugins)
        return " ".join(["sae-forge", command, *map(shlex.quote, words), *_spelled(flags)])

    def again(self, command: str, record: Mapping[str, Any]) -> str:
        """The command that was given with these settings: those are named that neither a default nor the preset says.

        Args:
            record: Settings by name as JSON has them; of names that are none here nothing is said.
        """
        kind = self._kind(command)
        known = resolve(kind, {"model": self.config.model})
        # a folder's name says nothing to others, and no path of this machine leaves it
        model = "YOUR_MODEL" if Path(self.config.model).expanduser().exists() else self.config.model
        flags: dict[str, Any] = {"model": model}
        for name, said in described(kind).items():
            value = record.get(name)
            told = name in record and not said.setting.local and not isinstance(value, dict) and name not in flags
            if told and value != plain(getattr(known, name)):
                flags[name] = tuple(value) if isinstance(value, list) else value
        return " ".join(["sae-forge", command, *_spelled(flags)])

    def _kind(self, command: str) -> type[ModelConfig]:
        composed = {"features": features_config, "eval": eval_config}
        kinds = (CollectConfig, TrainConfig, GenerateConfig, ReportConfig, PushConfig)
        named = {kind.__name__.lower().removesuffix("config"): kind for kind in kinds}
        return composed[command](catalogue_of(self.config)) if command in composed else named[command]


def _spelled(flags: Mapping[str, Any]) -> list[str]:
    """Settings as flags; what is unset has none."""
    said = []
    for name, value in flags.items():
        if isinstance(value, bool):
            said.append(f"--{name}" if value else f"--no_{name}")
        elif value is not None:
            text = shlex.quote(shown(value))
            said.append(f"--{name}={text}" if text.startswith("-") else f"--{name} {text}")  # or -3 is a flag
    return said


_NOT_REPEATED = frozenset({"fresh", "resume"})
_OF_SEVERAL_LAYERS = ("collect", "train")


def device_of(name: str) -> str:
    """The device ``auto`` stands for on this machine; each rank of a machine takes a card of its own."""
    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if ranks.here().world == 1 else f"cuda:{ranks.here().local % torch.cuda.device_count()}"
