"""How a method, a setting, a number and a unit are said, wherever they are said: claims, tables, pictures, the card."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sae_forge.statistics.estimate import Estimate

if TYPE_CHECKING:
    from sae_forge.results.report import Spread

KINDS = {
    "latents": "Other latents' directions at the same norm",
    "isotropic": "Random directions of the same norm",
    "places": "The same pushes on other tokens",
    "direction": "One random direction at the same norm",
}
"""What each kind of random control is."""


# ---- methods and settings -----------------------------------------------------------------------


def label(name: str, settings: Mapping[str, Any], unsaid: Collection[str] = ()) -> str:
    """A method and its settings for a cell: ``scale -3, 100 latents``; a control says first whose it is."""
    if "of" in settings and "kind" in settings:
        rest = {key: value for key, value in settings.items() if key not in ("of", "kind")}
        return f"{name} {settings['kind']} for {label(settings['of'], rest, unsaid)}"
    words = []
    for key, value in settings.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if key == name:  # the scale of scale needs no name
            words.insert(0, text)
        elif key == "num_features":
            words.append(f"{text} latent{'s' * (value != 1)}")
        elif key not in unsaid:
            words.append(f"{spaced(key)} {text}")
    return " ".join([name, ", ".join(words)]).strip()


def seeds(label: str, count: int) -> str:
    """A label of something that was measured under several seeds."""
    return f"{label} ({count} seeds)" if count > 1 else label


def spaced(key: str) -> str:
    """A key in words."""
    return key.replace("_", " ")


def capital(words: str) -> str:
    """With its first letter large, and the others as they are."""
    return words[:1].upper() + words[1:]


def lowered(title: str) -> str:
    """A title within a sentence: ``loss on held-out text``; a name in capitals (``MUSE``) stays as it is."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def with_unit(words: str, unit: str) -> str:
    """A heading: ``log-prob of what should follow, nats per token``."""
    return ", ".join(filter(None, (words, unit)))


# ---- numbers ------------------------------------------------------------------------------------


def interval(estimate: Estimate | None, digits: int = 2) -> str:
    """``0.26 [0.20, 0.31]``; nothing where nothing was measured."""
    if estimate is None:
        return ""
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def over_seeds(spread: "Spread", digits: int = 2) -> str:
    """What several seeds gave: ``0.50 (0.33 to 0.65)``, their mean and the ends."""
    return f"{spread.mean:.{digits}f} ({spread.min:.{digits}f} to {spread.max:.{digits}f})"


def in_percent(estimate: Estimate) -> str:
    """A share: ``26% [20, 31]``."""
    return f"{100 * estimate.value:.0f}% [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def moved(change: Estimate, times: float = 1) -> str:
    """A change with its sign: ``-1.73 [-3.08, -0.769]``."""
    value, low, high = (number * times for number in (change.value, change.low, change.high))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def went(before: float, after: Estimate, change: Estimate, digits: int = 2) -> str:
    """What a paired change allows one to say: ``fell from 1.00 to 0.26 [0.20, 0.31]``, or that it stayed."""
    was, now = f"{before:.{digits}f}", interval(after, digits)
    if change.high < 0 or change.low > 0:
        return f"{'fell' if change.high < 0 else 'rose'} from {was} to {now}"
    same = was == f"{after.value:.{digits}f}"
    return f"stayed at {now}" if same else f"went from {was} to {now}, which is no measurable change"


def share(value: float | None, digits: int = 2) -> str:
    """A share in percent; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}%}"


def number(value: Any) -> str:
    """A number, a list or a text as a cell: three digits of a float, thousands of an integer marked."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Estimate):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
