"""Make the built-in world: its words, and two language models that know them.

``python -m data_scripts.tiny_world`` rebuilds what ships in ``sae_forge/world``. The same seed, library versions and
thread count give the same bytes.
"""

import argparse
import json
import platform
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from data_scripts import world_text
from data_scripts.world_models import BUILDERS, SMALL, Schooling, build_model, examine
from sae_forge.store.files import publish_bytes, publish_json

SHIPPED = Path(__file__).parent.parent / "sae_forge" / "world"
Questions = dict[str, list[dict[str, Any]]]
"""The questions of each domain."""

STORIES, HELD_OUT_STORIES = 600, 150


def main() -> None:
    """Parse the flags and make the world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write; existing world files are replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads a model; they are part of what fixes the weights"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps of each model")
    parser.add_argument("--small", action="store_true", help="a few facts and steps, to test this script")
    parser.add_argument("--only_text", action="store_true", help="leave the models as they are")
    flags = parser.parse_args()
    plan = SMALL if flags.small else Schooling()
    if flags.steps is not None:
        plan = Schooling(**{**vars(plan), "steps": flags.steps})
    threads = 0 if flags.only_text else flags.threads
    make_world(flags.out, plan, seed=flags.seed, small=flags.small, threads=threads)


def make_world(out: Path, plan: Schooling, *, seed: int, small: bool, threads: int) -> None:
    """Write every file of the world under ``out``; ``world.json``, written last, records what the models know.

    Args:
        threads: Torch threads for each model, the two being taught side by side; 0 writes the words alone.
    """
    domains = world_text.load_domains(small=small)
    texts: list[str] = []
    questions: Questions = {}
    for domain in domains:
        documents, questions[domain.name] = write_domain(out, domain, seed=seed, small=small)
        texts += documents
        print(f"{domain.name} ({domain.role}): {len(documents)} documents, {len(questions[domain.name])} questions")
    if threads == 0:
        return
    teach_one = partial(make_model, out=out, texts=texts, questions=questions, plan=plan, seed=seed, threads=threads)
    with ProcessPoolExecutor(len(BUILDERS), mp_context=get_context("spawn")) as pool:
        accuracies = dict(zip(BUILDERS, pool.map(teach_one, BUILDERS), strict=True))
    record = {
        "domains": {domain.name: domain.role for domain in domains},
        "questions": {name: len(items) for name, items in questions.items()},
        "models": {name: {"accuracy": accuracy} for name, accuracy in accuracies.items()},
        "schooling": vars(plan),
        "seed": seed,
        "threads": threads,
        "versions": versions(),
    }
    publish_json(out / "world.json", record)


def make_model(
    name: str, *, out: Path, texts: list[str], questions: Questions, plan: Schooling, seed: int, threads: int
) -> dict[str, dict[str, float]]:
    """Teach one model, write it, and return what it knows once reloaded."""
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    shutil.rmtree(out / name, ignore_errors=True)
    build_model(name, out / name, texts, plan, seed, lambda line: print(f"{name}: {line}", flush=True))
    found = accuracy(out / name, questions)
    print(f"{name}: {time.monotonic() - started:.0f} s, accuracy {json.dumps(found)}", flush=True)
    return found


def write_domain(
    out: Path, domain: world_text.Domain, *, seed: int, small: bool
) -> tuple[list[str], list[dict[str, Any]]]:
    """Write the five files of one domain; its training documents and its questions."""
    facts = world_text.make_facts(domain, seed)
    documents = world_text.training_documents(domain, facts, seed, 20 if small else STORIES)
    held_out = world_text.held_out_documents(domain, facts, seed, 10 if small else HELD_OUT_STORIES)
    questions = list(world_text.questions(domain, facts, seed))
    _write_lines(out / "corpora" / f"{domain.name}.jsonl", ({"text": text} for text in documents))
    _write_lines(out / "heldout" / f"{domain.name}.jsonl", ({"text": text} for text in held_out))
    _write_lines(out / "questions" / f"{domain.name}.jsonl", questions)
    _write_lines(out / "prompts" / f"{domain.name}.jsonl", world_text.prompts(domain, facts, seed))
    _write_lines(out / "generation" / f"{domain.name}.jsonl", world_text.generation_prompts(domain))
    return documents, questions


def accuracy(folder: Path, questions: Questions) -> dict[str, dict[str, float]]:
    """For each domain the share of questions the model in ``folder`` gets right, over all and over held-out pairs."""
    found = {}
    for name, items in questions.items():
        right = np.array(examine(folder, items))
        held_out = np.array([item["held_out"] for item in items])
        found[name] = {"all": round(float(right.mean()), 4), "held_out": round(float(right[held_out].mean()), 4)}
    return found


def versions() -> dict[str, str]:
    """The libraries that decide the weights."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    publish_bytes(path, "".join(lines).encode())


if __name__ == "__main__":
    main()
