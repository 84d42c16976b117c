"""``generate``: one prompt continued by the model as it is and under the edit."""

from typing import Any

from sae_forge.config.generate import GenerateConfig
from sae_forge.features.selection import Selection
from sae_forge.interventions.apply import attached
from sae_forge.interventions.edit import Edit
from sae_forge.live.session import Session
from sae_forge.methods.edits.scale import scale
from sae_forge.models.chat import prompt_ids
from sae_forge.models.tokens import room_after
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.results.sheets import Sheet
from sae_forge.tasks.engines.generation import Sampling, Written


def generate(config: GenerateConfig, bench: Bench, prompt: str) -> Outcome:
    """What the model writes after ``prompt``: as it is, then under each scale, drawn with the same numbers."""
    config = bench.settle(config)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )
    named = bench.sae(config.sae)
    bench.require_same_model(named)
    bench.progress.say(bench.lm.opening.sentence())
    path = bench.selection(config.selection, named.folder)
    selection = Selection.load(path, weights=named.weights)
    if max(config.num_features) > len(selection.indices):
        bench.progress.say(
            f"{max(config.num_features)} latents were asked for and {len(selection.indices)} are selected"
        )
    edits: dict[str, tuple[Edit, ...]] = {"baseline": ()} if config.compare else {}
    for count in config.num_features:
        for factor in config.ablation_scale:
            intervention = scale(selection.indices[:count], factor)
            name = f"scale {factor:g} on {len(intervention.latents)} latents"
            edits[name] = (Edit(named.point, named.sae, intervention),)
    read = prompt_ids(bench.lm, prompt)
    room = room_after(bench.lm, read, sampling.max_new_tokens)
    if room < sampling.max_new_tokens:
        bench.progress.say(
            f"the prompt is {len(read)} of the {len(read) + room} tokens that {bench.lm.name} takes, so {room} are "
            f"written at most, not {sampling.max_new_tokens}"
        )
    texts: dict[str, dict[str, Any]] = {}
    for name, in_force in edits.items():
        with attached(bench.lm, in_force) as log:
            tokens = [token for token in Session(bench.lm, log).stream([prompt], sampling) if token.written]
        text = "".join(token.piece for token in tokens)
        measures = Written(prompt, text, len(tokens)).measures()
        edited = sum(token.edited for token in tokens)
        texts[name] = {"text": text, **measures, "tokens": len(tokens), "edited_tokens": edited}
    return Outcome(
        run=bench.run,
        outputs={"selection": path},
        metrics={"prompt": prompt, "prompt_tokens": len(read), "max_new_tokens": room, "texts": texts},
        summary="removing the hook restores the baseline: an edit lives in the forward pass, not in the weights",
        then=bench.next("report"),
        tables=(Sheet(prompt, ("edit", "continuation"), tuple((name, of["text"]) for name, of in texts.items())),),
    )
