"""What a method is: a description of data and callables that says everything the house must know of it.

A file of ``edits/``, ``weights/`` or ``wrappers/`` declares one, and ``table`` lists it; nothing else names it. The
command line reads its flags off the table, so a file that declares a method loads torch inside its functions alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sae_forge.errors import ConfigError, DataError, ForgeError

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Edited, Subject

Settings = dict[str, Any]
"""A method's settings by name, JSON-ready, as a report shows them."""


RARER = "retain_threshold"
"""The setting of an edit that takes only those of its latents which are rarer on retain text."""


@dataclass(frozen=True)
class Strength:
    """The axis of a sweep that takes as many values as the budget needs, in equal ratios from gentle to rough."""

    name: str
    low: float
    high: float

    def values(self, count: int) -> list[float]:
        """Both ends and what lies between; of one value the middle."""
        steps = [number / (count - 1) for number in range(count)] if count > 1 else [0.5]
        return [short(self.low * (self.high / self.low) ** step) for step in steps]


Axes = tuple[Mapping[str, Sequence[Any]], Strength]
"""The axes with given values, and the strength."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Something done to a model, from its flags to the subject that is asked."""

    name: str
    kind: Literal["hook", "weights"]
    """Edits of the running model, or weights of its own."""
    title: Callable[[Settings], str] | None = None
    """The method at these settings, in words: ``Scale -3 on 200 latents``. None: its name, its latents, how rough."""
    rough: tuple[str, ...] = ()
    """Settings that say how rough it is, by which pictures order its points; the first of them that it has."""
    unsaid: tuple[str, ...] = ()
    """Settings that tables leave out, as they are the same in every row; the report's file has them."""
    from_flags: Callable[[int, "Materials"], list[Settings]]
    """The settings that the flags name, for this many latents."""
    build: Callable[[Settings, "Materials"], "Subject"]
    """The model under the method; it may raise a DataError where something it is made from is missing."""
    needs: Callable[["Materials"], ForgeError | None] = lambda materials: None  # noqa: ARG005
    """The error to raise where it was asked for by name and cannot be measured with what there is."""
    axes: Callable[[int, "Materials"], Axes] | None = None
    """What a sweep varies, for at most this many latents; None: nothing but their number, so it is measured once."""
    finished: Callable[[Settings, "Materials"], Settings] = lambda point, materials: point  # noqa: ARG005
    """From a point of the axes to settings."""
    least: int = 1
    """Settings a sweep must try for the method to be a fair rival."""
    everywhere: Callable[["Edited"], bool] | None = None
    """Whether it edits every token, so that there are no other tokens to put it on; None: the edit's kind says."""
    at_rest: bool = False
    """It puts latents to rest: a control itself, which gets none."""
    settings: type | None = None
    """The config class of its flags."""
    intervention: "Callable[..., Intervention] | None" = None
    """The function of its file that makes it of latents and the settings of ``arguments``, in this order: how a card
    says in Python what was measured. None: latents and settings do not say it."""
    arguments: tuple[str, ...] = ()
    parts: tuple["Method", ...] = ()
    """The methods it is made of, which a sweep tunes in its place."""
    joined: Callable[[Sequence[Settings], "Materials"], Settings] | None = None
    """Its settings, from those that were chosen for its parts."""

    def said(self, settings: Settings) -> str:
        """The method at these settings, in words."""
        return self.title(settings) if self.title else titled(self.name, *self.rough)(settings)


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """Something done on top of the methods that are named beside it, as in ``--methods rmu,relearned``."""

    name: str
    title: Callable[[Settings], str]
    """What it does, in words: ``relearned for 50 steps``."""
    from_flags: Callable[["Materials"], Settings]
    """Its own settings, whose names are no method's; they stand beside those of what it wraps."""
    over: Callable[["Wrapper", Sequence[Method]], Sequence[Method]]
    """The methods it makes of those that are asked: :func:`on_each`, or one of its own."""
    wrap: Callable[["Subject", Settings, "Materials"], "Subject"] | None = None
    """What a subject becomes, under :func:`on_each`."""
    needs: Callable[["Materials"], ForgeError | None] = lambda materials: None  # noqa: ARG005
    settings: type | None = None
    kind: ClassVar[str] = "wrapper"


def on_each(wrapper: Wrapper, methods: Sequence[Method]) -> list[Method]:
    """Every method wrapped: named ``rmu+relearned``, tuned as the method alone, with weights of its own."""
    return [_wrapped(wrapper, method) for method in methods]


def _wrapped(wrapper: Wrapper, method: Method) -> Method:
    wrap = wrapper.wrap
    assert wrap is not None

    def build(settings: Settings, materials: "Materials") -> "Subject":
        own = wrapper.from_flags(materials)
        # the method knows none of the wrapper's settings, which stand among its own
        inner = {name: value for name, value in settings.items() if name not in own}
        return wrap(method.build(inner, materials), settings, materials)

    def from_flags(size: int, materials: "Materials") -> list[Settings]:
        return [settings | wrapper.from_flags(materials) for settings in method.from_flags(size, materials)]

    return done_to(
        method,
        wrapper,
        from_flags=from_flags,
        build=build,
        at_rest=method.at_rest,
        joined=lambda chosen, materials: chosen[0] | wrapper.from_flags(materials),
    )


def done_to(method: Method, wrapper: Wrapper, **how: Any) -> Method:
    """The method with the wrapper around it, named after both; ``how``: its settings, and how it is built of them."""
    return Method(
        name=f"{method.name}+{wrapper.name}",
        kind="weights",
        title=lambda settings: f"{method.said(settings)}, {wrapper.title(settings)}",
        rough=method.rough,
        unsaid=method.unsaid,
        needs=lambda materials: method.needs(materials) or wrapper.needs(materials),
        parts=(method,),
        **how,
    )


# ---- the settings that a sweep tries ------------------------------------------------------------


def require_budget(method: Method, count: int) -> None:
    """Raise ConfigError where a sweep of so many settings a method would be unfair to this one."""
    if method.axes is not None and count < method.least:
        raise ConfigError(
            f"--configurations {count}: {method.name} needs at least {method.least} to be a fair rival, and all "
            f"methods get the same; give {method.least} or leave {method.name} out of --methods"
        )


def grid(method: Method, materials: "Materials") -> list[Settings]:
    """The settings that a sweep tries: ``config.configurations`` of them, or one where there is nothing to tune.

    All methods get as many, so that none wins by having been tried harder.

    Raises:
        ConfigError: the method cannot be given as many, or needs more.
    """
    size = min(max(materials.config.num_features), len(materials.selection.indices))
    if method.axes is None:
        return [{"num_features": size}]
    count = materials.config.configurations
    require_budget(method, count)
    points = _points(_axes(method, materials), count)
    # what a method makes of a point may leave out what is no axis of its own
    kept = [{name: point[name] for name in point if name == RARER} for point in points]
    tried = [method.finished(point, materials) | also for point, also in zip(points, kept, strict=True)]
    # by what they print as: settings may hold lists, which no set takes
    if (different := len({repr(one) for one in tried})) != count:
        raise ConfigError(
            f"--configurations {count}: {method.name} has only {different} different settings with {size} latents, so "
            "the budget cannot be equal; lower it, select more latents or raise --baseline_steps"
        )
    return tried


def ends(method: Method, materials: "Materials") -> list[str | None]:
    """For each setting of :func:`grid` whether its strength is the ``gentlest`` or the ``roughest`` that is tried."""
    if method.axes is None:
        return [None]
    axes = _axes(method, materials)
    strengths = [point[axes[1].name] for point in _points(axes, materials.config.configurations)]
    named = {min(strengths): "gentlest", max(strengths): "roughest"}
    return [named.get(strength) for strength in strengths]


def _axes(method: Method, materials: "Materials") -> Axes:
    """The method's own axes; of an edit of latents also the thresholds that the config names."""
    assert method.axes is not None
    size = min(max(materials.config.num_features), len(materials.selection.indices))
    given, strength = method.axes(size, materials)
    limits = materials.config.sweep_thresholds
    if limits and method.kind == "hook" and "num_features" in given:
        given = {**given, RARER: list(limits)}
    return given, strength


def _points(axes: Axes, count: int) -> list[Settings]:
    """``count`` points: every combination of the axes with as many strengths as that needs, evenly thinned."""
    given, strength = axes
    combinations = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    # the strength varies slowest, so that thinning below keeps every combination at gentle and at rough ones
    strengths = strength.values(math.ceil(count / len(combinations)))
    points = [one | {strength.name: value} for value in strengths for one in combinations]
    return [points[number * len(points) // count] for number in range(count)]


def short(value: float) -> float:
    """The value to three digits, as a report shows it."""
    return float(f"{value:.3g}") + 0.0  # no -0


# ---- words --------------------------------------------------------------------------------------


def latents_in_words(settings: Settings) -> str:
    """``200 latents``; nothing where a method takes none."""
    count = settings.get("num_features", settings.get("given"))
    return f"{count} latent{'s' if count > 1 else ''}" if count else ""


def titled(name: str, *shown: str) -> Callable[[Settings], str]:
    """Words for a method: its name, its latents, and the settings that say how rough it is."""

    def title(settings: Settings) -> str:
        latents = latents_in_words(settings)
        rough = [f"{key} {settings[key]:g}" for key in shown if key in settings]
        return ", ".join([f"{name} of {latents}" if latents else name, *rough])

    return title


def without_shards(name: str, why: str, materials: "Materials") -> ForgeError | None:
    """The error to raise where a method reads the collected activations and there are none."""
    if materials.collected is not None:
        return None
    return DataError(
        f"{name} {why}, and the activations that the selection was made from are not in the run folder; run features "
        f"again, or leave {name} out of --methods"
    )
