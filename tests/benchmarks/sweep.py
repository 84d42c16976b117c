"""How much of a measurement the tape spares: one setting of an edit asked the same questions with and without it.

An edit after layer l of L leaves L - l - 1 layers to run, so a played measurement is at best L / (L - l - 1) times as
fast. No time is taken before both ways have given the same scores to the bit.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from small_model import questions, small_llama
from timing import Seconds, both, conditions, interleaved, milliseconds, ratios, table, write_json

from sae_forge.evals.generation import Sampling
from sae_forge.evals.items import Domain
from sae_forge.evals.measure import Measurement, Suite, measure
from sae_forge.evals.multiple_choice import encode_questions
from sae_forge.evals.subjects import AsItIs, Hook, Subject, in_force
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.methods import scale
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE

HEAD = ("layer l", "in full ms", "played ms", "speed-up", "L / (L-l-1)", "share of it", "bound", "share of bound")


class Asked(NamedTuple):
    """A model and all that is asked of it."""

    lm: LanguageModel
    suite: Suite

    def measured(self, point: HookPoint, subject: Subject, tape: Tape | None) -> Measurement:
        """One setting measured, as a sweep does it."""
        with in_force(self.lm, point, subject) as (lm, log), SILENT.task("", None, "items") as task:
            return measure(lm, self.suite, log, task, tape=tape)


def main() -> None:
    """Measure at each layer, and print a table and what its bound is made of."""
    options = _options()
    device = torch.device(options.device)
    lm = small_llama(options.layers, options.d_model, options.device)
    asked = Asked(lm, _suite(lm, options.questions, options.batch_size))
    sae = TopKSAE(lm.d_model, options.expansion * lm.d_model, options.k, seed=1).to(device)
    subject = Hook(sae, scale(tuple(range(0, sae.d_sae, sae.d_sae // options.latents))[: options.latents]))
    tokens = [len(item.context) for items in asked.suite.questions.values() for item in items]
    sizes = {name: value for name, value in vars(options).items() if name not in ("json", "device")}
    found: dict[str, Any] = {
        "sizes": sizes | {"tokens_a_question": sum(tokens) / len(tokens), "d_sae": sae.d_sae},
        "conditions": conditions(device),
    }
    time = partial(interleaved, rounds=options.rounds, device=device)
    parts = time(_parts(asked, subject))
    found["parts"] = parts
    rows = []
    for layer in options.at:
        seconds = time(_ways(asked, HookPoint(layer), subject))
        found[f"layer {layer}"] = seconds
        rows.append(_row(layer, lm.n_layers, seconds, _bound(parts, lm.n_layers, layer)))
    found["load_after"] = conditions(device)["load"]
    print(found["conditions"] | {"load_after": found["load_after"]}, found["sizes"], sep="\n", end="\n\n")
    print(table(HEAD, rows), _shown(parts, lm.n_layers), sep="\n\n")
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


def _suite(lm: LanguageModel, count: int, batch_size: int) -> Suite:
    """Half the questions on what is forgotten, half on what is kept, answered by letter."""
    domains = tuple(
        Domain(name=role, role=role, questions=questions(count // 2, seed))
        for seed, role in enumerate(("forget", "retain"), start=1)
    )
    return Suite(
        domains=domains,
        questions={domain.name: encode_questions(lm, domain.questions, "letter", domain.name) for domain in domains},
        prompts={},
        corpora=(),
        generation=(),
        sampling=Sampling(),
        batch_size=batch_size,
    )


def _ways(asked: Asked, point: HookPoint, subject: Subject) -> dict[str, Callable[[], object]]:
    """The measurement in full and played, after both gave the same."""
    tape = Tape(asked.lm, point)
    full = asked.measured(point, subject, None)
    plain = asked.measured(point, AsItIs(), tape)
    if plain == full:
        raise SystemExit("the edit changed nothing, so equal scores would prove nothing")
    if asked.measured(point, subject, tape) != full:
        raise SystemExit(f"after layer {point.layer} a played measurement differs from one in full; nothing was timed")
    return {
        "full": partial(asked.measured, point, subject, None),
        "played": partial(asked.measured, point, subject, tape),
    }


# ---- what the bound is made of ------------------------------------------------------------------


def _parts(asked: Asked, subject: Subject) -> dict[str, Callable[[], object]]:
    """Measurements whose differences are the cost of the layers, of the edit, and of what no tape spares."""
    last = HookPoint(asked.lm.n_layers - 1)
    tape = Tape(asked.lm, last)
    asked.measured(last, AsItIs(), tape)
    return {
        "plain": partial(asked.measured, last, AsItIs(), None),
        "edited": partial(asked.measured, last, subject, None),
        "no layers": partial(asked.measured, last, AsItIs(), tape),
    }


def _costs(parts: Seconds, n_layers: int) -> tuple[float, float, float]:
    """Seconds of one layer, of the edit, and of all the rest, from the minima."""
    plain, edited, bare = (min(parts[name]) for name in ("plain", "edited", "no layers"))
    return (plain - bare) / n_layers, edited - plain, bare


def _bound(parts: Seconds, n_layers: int, layer: int) -> float:
    """The speed-up of a tape that costs nothing, the edit and the rest being paid both ways."""
    one, edit, rest = _costs(parts, n_layers)
    return (n_layers * one + edit + rest) / ((n_layers - layer - 1) * one + edit + rest)


def _shown(parts: Seconds, n_layers: int) -> str:
    one, edit, rest = _costs(parts, n_layers)
    return (
        f"One layer {1e3 * one:.1f} ms, the edit {1e3 * edit:.1f} ms ({edit / one:.2f} layers), "
        f"embedding, logits, scoring and tape {1e3 * rest:.1f} ms ({rest / one:.2f} layers)."
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
        f"{min(speed_up) / bound:.2f}",
    )


if __name__ == "__main__":
    main()
