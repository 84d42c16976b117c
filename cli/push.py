"""``sae-forge push``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import verb
from sae_forge.config.push import PushConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        PushConfig,
        reads_run=True,
        examples="""
        sae-forge push you/tiny-llama-wizards --dry_run
        sae-forge push you/gemma-2-2b-wmdp-sae --private --model google/gemma-2-2b
        """,
    )
    def push(
        config: PushConfig,
        screen: "Screen",
        repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where it goes on the Hub: name/repository.")],
    ) -> "Outcome":
        """Publish SAE, selection, report and model card on the Hugging Face Hub in one commit.

        The token comes from HF_TOKEN or `hf auth login`. Corpus text stays home unless --include_contexts is given.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.push import push

        return push(config, Bench(config, screen), repo_id)
