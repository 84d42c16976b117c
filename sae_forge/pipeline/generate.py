"""``generate``: one prompt continued by the model as it is and under the edit."""

from sae_forge.config.generate import GenerateConfig
from sae_forge.features.selection import Selection
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.outcome import Outcome, Sheet
from sae_forge.pipeline.bench import Bench
from sae_forge.tasks.engines.generation import Sampling, Written, write


def generate(config: GenerateConfig, bench: Bench, prompt: str) -> Outcome:
    """What the model writes after ``prompt``: as it is, then under each scale, drawn with the same numbers."""
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )
    named = bench.sae(config.sae)
    bench.require_same_model(named)
    path = bench.selection(config.selection, named.folder)
    selection = Selection.load(path, weights=named.weights)
    texts = {"baseline": _continued(bench, prompt, sampling)} if config.compare else {}
    if max(config.num_features) > len(selection.indices):
        bench.progress.say(
            f"{max(config.num_features)} latents were asked for and {len(selection.indices)} are selected"
        )
    for count in config.num_features:
        for scale in config.ablation_scale:
            edit = Intervention("scale", selection.indices[:count], NegativeScaling(scale))
            with applied(bench.lm, named.sae, named.point, edit):
                texts[f"scale {scale:g} on {len(edit.latents)} latents"] = _continued(bench, prompt, sampling)
    return Outcome(
        run=bench.run,
        outputs={"selection": path},
        metrics={
            "prompt": prompt,
            "texts": {name: {"text": found.text, **found.measures()} for name, found in texts.items()},
        },
        summary="removing the hook restores the baseline: an edit lives in the forward pass, not in the weights",
        tables=(Sheet(prompt, ("edit", "continuation"), tuple((name, found.text) for name, found in texts.items())),),
    )


def _continued(bench: Bench, prompt: str, sampling: Sampling) -> Written:
    return write(bench.lm, [prompt], sampling, batch_size=1)[0]
