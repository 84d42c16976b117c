"""``push``: an SAE with all that is known about it goes to the Hub in one commit."""

from sae_forge.config.push import PushConfig
from sae_forge.errors import CheckpointError
from sae_forge.hub.push import push as publish
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.store.runs import POINTER


def push(config: PushConfig, bench: Bench, repo_id: str) -> Outcome:
    """The commit, or with ``dry_run`` its description; the newest report and the selection it measured go along."""
    folder = bench.sae(config.sae).folder
    if (folder / POINTER).exists():
        raise CheckpointError(f"{folder.name} was made elsewhere and is not ours to publish; push takes a trained SAE")
    evaluation, selection = bench.evaluated(folder)
    report = publish(folder, repo_id, config, selection=selection, evaluation=evaluation, progress=bench.progress)
    found = {"sae": folder, "selection": selection, "evaluation": evaluation}
    return Outcome(
        run=bench.run,
        outputs={name: path for name, path in found.items() if path is not None},
        metrics=report.to_json(),
        summary=report.summary(),
    )
