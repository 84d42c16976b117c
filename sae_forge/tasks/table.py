"""The tasks there are: one line each. Taking a line out takes the task out of the program."""

from sae_forge.tasks.completions import Completions
from sae_forge.tasks.held_out import HeldOut
from sae_forge.tasks.judge import Judge
from sae_forge.tasks.lm_eval import LmEval
from sae_forge.tasks.memorisation import Memorisation
from sae_forge.tasks.muse import Muse
from sae_forge.tasks.prompts import Prompts
from sae_forge.tasks.questions import Questions
from sae_forge.tasks.task import Task
from sae_forge.tasks.tofu import Tofu

TASKS: tuple[Task, ...] = (
    Questions(),
    Completions(),
    HeldOut(),
    Prompts(),
    Muse(),
    Tofu(),
    Memorisation(),
    Judge(),
    LmEval(),
)
"""In the order in which a domain is asked."""
