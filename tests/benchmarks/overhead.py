"""What an edit costs: a forward pass and cached generation with an intervention in force, over the bare model.

No time is taken before each edit has been seen to change the logits.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_model import questions, small_llama
from timing import both, conditions, interleaved, milliseconds, ratios, table, write_json
from torch import Tensor

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import applied
from sae_forge.interventions.intervention import Intervention
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.scale import scale
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.continuations import encode
from sae_forge.tasks.engines.generation import Sampling, write
from sae_forge.tasks.engines.multiple_choice import letter_prompt
from sae_forge.tasks.engines.passes import forward, pad

BARE = "bare model"
HEAD = ("edit", "forward ms", "over bare", "generation ms", "over bare")


def main() -> None:
    """Measure every edit both ways, and print a table."""
    options = _options()
    device = torch.device(options.device)
    lm = small_llama(options.layers, options.d_model, options.device)
    sae, point = TopKSAE(lm.d_model, options.d_sae, options.k, seed=1).to(device), HookPoint(options.layers // 2)
    latents = tuple(range(0, sae.d_sae, sae.d_sae // options.latents))[: options.latents]
    edits = {BARE: None, "scale": scale(latents), "clamp": clamp(latents), "dsg, gate open": dsg(latents)}
    edits["dsg, gate shut"] = dsg(latents, tau=1.0)  # a share never exceeds 1: nothing is written
    texts = [letter_prompt(item, "anything") for item in questions(options.batch_size, seed=1)]
    asked = {
        "forward": partial(_forward, lm, [item.context for item in encode(lm, [(text, ("A",)) for text in texts])]),
        "generation": partial(_write, lm, texts, options.new_tokens),
    }
    _check(lm, sae, point, edits, asked["forward"])
    found: dict[str, Any] = {
        "sizes": {name: value for name, value in vars(options).items() if name not in ("json", "device")},
        "conditions": conditions(device),
    }
    for name, ask in asked.items():
        cases = {label: partial(_under, lm, sae, point, edit, ask) for label, edit in edits.items()}
        found[name] = interleaved(cases, options.rounds, device)
    found["load_after"] = conditions(device)["load"]
    print(found["conditions"] | {"load_after": found["load_after"]}, found["sizes"], sep="\n", end="\n\n")
    print(table(HEAD, [_row(label, found, tuple(asked)) for label in edits]))
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="layers of the model; the edit is after the middle")
    parser.add_argument("--d_model", type=int, default=256, help="width of the model, a multiple of 32")
    parser.add_argument("--d_sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--latents", type=int, default=200, help="latents edited")
    parser.add_argument("--batch_size", type=int, default=8, help="texts of about 100 tokens")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


@torch.inference_mode()
def _forward(lm: LanguageModel, rows: list[tuple[int, ...]]) -> Tensor:
    """Logits of the last token of each text."""
    return forward(lm, *pad(rows, lm.pad_id, left=True), keep=1).logits


def _write(lm: LanguageModel, texts: list[str], new_tokens: int) -> None:
    """Continuations of every text, token by token from a cache."""
    write(lm, texts, Sampling(max_new_tokens=new_tokens), batch_size=len(texts))


def _under(lm: LanguageModel, sae: TopKSAE, point: HookPoint, edit: Intervention | None, ask: Callable[[], Any]) -> Any:
    with nullcontext() if edit is None else applied(lm, sae, point, edit):
        return ask()


def _check(
    lm: LanguageModel,
    sae: TopKSAE,
    point: HookPoint,
    edits: dict[str, Intervention | None],
    ask: Callable[[], Tensor],
) -> None:
    """An edit whose gate is shut leaves the logits identical to the bit; every other one changes them."""
    bare = ask()
    for label, edit in edits.items():
        same = torch.equal(_under(lm, sae, point, edit, ask), bare)
        if same != (label in (BARE, "dsg, gate shut")):
            raise SystemExit(f"{label} {'changed nothing' if same else 'changed the logits'}; nothing was timed")


def _row(label: str, found: dict[str, Any], asked: tuple[str, ...]) -> tuple[str, ...]:
    cells = [label]
    for name in asked:
        seconds = found[name]
        cells += [both(milliseconds(seconds[label]), 0), both(ratios(seconds[label], seconds[BARE]))]
    return tuple(cells)


if __name__ == "__main__":
    main()
