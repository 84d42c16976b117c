"""``demo``: what a conversation needs, made first where the built-in world has none of it yet."""

from dataclasses import replace

from sae_forge import builtin
from sae_forge.config.generate import DemoConfig
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.pipeline.features import features
from sae_forge.pipeline.generate import Opened, opened
from sae_forge.pipeline.train import train
from sae_forge.settings import resolve
from sae_forge.study.settings import run_config


def ready(config: DemoConfig, bench: Bench) -> Opened:
    """What a conversation is held with. For a built-in model without a run an SAE is trained and latents are selected.

    Raises:
        DataError: a model of somebody else's has no run yet; names the command that makes one.
    """
    if config.model in builtin.MODELS and config.sae is None and config.selection is None and not bench.run.exists:
        given = {"model": config.model, **({"run_dir": config.run_dir} if config.run_dir else {})}
        whole = resolve(run_config(), given)
        bench.progress.say(f"no run of {config.model} yet: collecting, training and selecting first")
        made = bench.under(whole)
        collect(whole, made)
        sae = str(next(iter(train(whole, made).outputs.values())))
        features(replace(whole, sae=sae), made)
        bench = made.under(config)
    return opened(bench.settle(config), bench, any_method=True)
