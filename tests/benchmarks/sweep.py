"""How much of a measurement the tape spares: one setting of an edit asked the same questions with and without it.

An edit after layer l of L leaves L - l - 1 layers to run: were layers all that costs, a played measurement would be
L / (L - l - 1) times as fast. No time is taken before both ways have given the same scores, but for rounding: a
question that the edit leaves as it is runs no layer again, and a batch without it sums in another order.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from small_model import questions, small_llama
from timing import Seconds, both, conditions, interleaved, milliseconds, ratios, table, write_json

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.edit import Edit
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.subjects import AsItIs, Edited, Subject, in_force
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tapes
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.measure import measure
from sae_forge.tasks.engines.multiple_choice import encode_questions
from sae_forge.tasks.item import Item
from sae_forge.tasks.questions import Questions
from sae_forge.tasks.task import Asked as Questioned

TOLERANCE = 1e-4
"""By which a score may differ, nats."""
HEAD = ("layer l", "in full ms", "played ms", "speed-up", "L / (L-l-1)", "share of it", "bound")


class Asked(NamedTuple):
    """A model and all that is asked of it."""

    lm: LanguageModel
    questions: tuple[Questioned, ...]
    batch_size: int

    def measured(self, subject: Subject, tapes: Tapes | None) -> list[Item]:
        """One setting measured, as a sweep does it."""
        with in_force(self.lm, subject) as (lm, log), SILENT.task("", None, "items") as task:
            found = measure(lm, self.questions, log, task, batch_size=self.batch_size, tapes=tapes)
        return [item for one in found for item in one.items]


def main() -> None:
    """Measure at each layer, and print a table and what its bound is made of."""
    options = _options()
    device = torch.device(options.device)
    lm = small_llama(options.layers, options.d_model, options.device)
    asked = Asked(lm, _questions(lm, options.questions), options.batch_size)
    sae = TopKSAE(lm.d_model, options.expansion * lm.d_model, options.k, seed=1).to(device)
    edit = scale(tuple(range(0, sae.d_sae, sae.d_sae // options.latents))[: options.latents])
    tokens = [len(item.context) for one in asked.questions for item in one.content[1]]
    sizes = {name: value for name, value in vars(options).items() if name not in ("json", "device")}
    found: dict[str, Any] = {
        "sizes": sizes | {"tokens_a_question": sum(tokens) / len(tokens), "d_sae": sae.d_sae},
        "conditions": conditions(device),
    }
    time = partial(interleaved, rounds=options.rounds, device=device)
    parts = time(_parts(asked, Edited((Edit(HookPoint(lm.n_layers - 1), sae, edit),))))
    found["parts"] = parts
    costs, rows = _costs(parts, lm.n_layers), []
    for layer in options.at:
        seconds = time(_ways(asked, HookPoint(layer), Edited((Edit(HookPoint(layer), sae, edit),))))
        found[f"layer {layer}"] = seconds
        rows.append(_row(layer, lm.n_layers, seconds, costs.bound(lm.n_layers, layer)))
    found["load_after"] = conditions(device)["load"]
    print(found["conditions"] | {"load_after": found["load_after"]}, found["sizes"], sep="\n", end="\n\n")
    print(table(HEAD, rows), costs, sep="\n\n")
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="layers of the model")
    parser.add_argument("--d_model", type=int, default=256, help="width of the model, a multiple of 32")
    parser.add_argument("--expansion", type=int, default=8, help="latents of the SAE over its width")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--latents", type=int, default=100, help="latents edited")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--at", type=int, nargs="+", default=[3, 7, 11, 14], help="layers after which to edit")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def _questions(lm: LanguageModel, count: int) -> tuple[Questioned, ...]:
    """Half the questions on what is forgotten, half on what is kept, answered by letter."""
    asked = []
    for seed, role in enumerate(("forget", "retain"), start=1):
        listed = questions(count // 2, seed)
        content = (listed, encode_questions(lm, listed, "letter", role))
        asked.append(Questioned(task=Questions(), domain=role, role=role, units=len(listed), content=content))
    return tuple(asked)


def _ways(asked: Asked, point: HookPoint, subject: Subject) -> dict[str, Callable[[], object]]:
    """The measurement in full and played, after both gave the same."""
    tapes = Tapes(asked.lm, point)
    full = asked.measured(subject, None)
    plain = asked.measured(AsItIs(), tapes)
    if plain == full:
        raise SystemExit("the edit changed nothing, so equal scores would prove nothing")
    if not (apart := _apart(asked.measured(subject, tapes), full)) <= TOLERANCE:
        raise SystemExit(
            f"after layer {point.layer} a played measurement differs from one in full by {apart:.1e} (at most "
            f"{TOLERANCE}); nothing was timed"
        )
    return {
        "full": partial(asked.measured, subject, None),
        "played": partial(asked.measured, subject, tapes),
    }


def _apart(some: list[Item], others: list[Item]) -> float:
    """By how much the scores of the same items differ at most."""
    pairs = [
        (torch.tensor(one.values[name]).double(), torch.tensor(other.values[name]).double())
        for one, other in zip(some, others, strict=True)
        for name in one.values.keys() | other.values.keys()
    ]
    return max(float((one - other).abs().max()) for one, other in pairs)


# ---- where the time goes ------------------------------------------------------------------------


class Costs(NamedTuple):
    """Seconds that parts of a measurement take: medians of each round's differences."""

    layer: float
    edit: float
    """In a run in full."""
    again: float
    """In a played run, where the SAE has encoded the activation before."""
    rest: float
    """Embedding, logits, scoring and the tape itself: what no tape spares."""

    def bound(self, n_layers: int, layer: int) -> float:
        """The speed-up that these costs allow an edit after ``layer``."""
        full = n_layers * self.layer + self.edit + self.rest
        return full / ((n_layers - layer - 1) * self.layer + self.again + self.rest)

    def __str__(self) -> str:
        edit, again, rest = (part / self.layer for part in (self.edit, self.again, self.rest))
        return (
            f"One layer takes {1e3 * self.layer:.1f} ms; in layers, the edit takes {edit:.2f} in full and {again:.2f} "
            f"played, and embedding, logits, scoring and tape together {rest:.2f}."
        )


def _parts(asked: Asked, subject: Subject) -> dict[str, Callable[[], object]]:
    """Measurements whose differences are those costs."""
    last = HookPoint(asked.lm.n_layers - 1)
    tapes = Tapes(asked.lm, last)
    asked.measured(AsItIs(), tapes)
    return {
        "plain": partial(asked.measured, AsItIs(), None),
        "edited": partial(asked.measured, subject, None),
        "no layers": partial(asked.measured, AsItIs(), tapes),
        "no layers, edited": partial(asked.measured, subject, tapes),
    }


def _costs(parts: Seconds, n_layers: int) -> Costs:
    rounds = list(zip(*parts.values(), strict=True))
    return Costs(
        layer=median((plain - bare) / n_layers for plain, _, bare, _ in rounds),
        edit=median(edited - plain for plain, edited, _, _ in rounds),
        again=median(edited - bare for _, _, bare, edited in rounds),
        rest=median(bare for _, _, bare, _ in rounds),
    )


def _row(layer: int, n_layers: int, seconds: Seconds, bound: float) -> tuple[str, ...]:
    speed_up, ideal = ratios(seconds["full"], seconds["played"]), n_layers / (n_layers - layer - 1)
    return (
        str(layer),
        both(milliseconds(seconds["full"]), 0),
        both(milliseconds(seconds["played"]), 0),
        both(speed_up),
        f"{ideal:.2f}",
        f"{min(speed_up) / ideal:.2f}",
        f"{bound:.2f}",
    )


if __name__ == "__main__":
    main()
