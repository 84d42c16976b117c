"""lm-eval's HFLM beside ours: the same requests of one task of letters, the same model and batch, no edit.

Times are of the processor. Nothing is timed before both give every item the same log-probs.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from chatty_gemma import records, save
from lm_eval.models.huggingface import HFLM
from timing import both, conditions, ratios, table, write_json

from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.tasks.engines.harness import HarnessLM, load_tasks, prepare

TASK = """
task: asked
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, dev: {folder}/dev.jsonl}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""  # noqa: E501 (a prompt stands on one line)
ROUNDING = 2e-5
GOALS = {0: 1.5, 5: 3.0}
"""How many times less the processor is to be used, by examples in front."""


def main() -> None:
    """Check, time both in turn, and print a table."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        folder = options.model or Path(own) / "model"
        if not (folder / "config.json").exists():
            save(folder, layers=4, d_model=128, steps=1)
        lm, found, rows = load_model(str(folder), device="cpu"), {}, []
        for shots, goal in GOALS.items():
            requests = _requests(lm, Path(own), options.questions, shots)
            seconds = _timed(lm, requests, options)
            found[f"{shots} shots"] = seconds
            least = ", ".join(f"{min(seconds[who]):.2f}" for who in seconds)
            rows.append((str(shots), least, both(ratios(seconds["HFLM"], seconds["ours"])), f"{goal}"))
    found["conditions"] = conditions(torch.device("cpu"))
    head = ("examples in front", "HFLM, ours: seconds", "times less", "goal")
    print(found["conditions"], vars(options), table(head, rows), sep="\n")
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a folder with the model of saebench.py; unset: an untrained one")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def _requests(lm: LanguageModel, folder: Path, count: int, shots: int) -> list[Any]:
    for split, number in (("test", count), ("dev", 5)):
        lines = [json.dumps(record) for record in records(split, number)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "asked.yaml").write_text(TASK.format(folder=folder))
    (task,) = load_tasks("asked", folder).values()
    return list(prepare(lm, task, range(count), shots=shots, chat=False).requests)


def _timed(lm: LanguageModel, requests: list[Any], options: Any) -> dict[str, list[float]]:
    theirs: Any = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=options.batch_size)  # pyright: ignore
    cases = {
        "HFLM": lambda: theirs.loglikelihood(requests, disable_tqdm=True),
        "ours": lambda: HarnessLM(lm, greedy=False, batch_size=options.batch_size).loglikelihood(requests),
    }
    its, own = (torch.tensor([logprob for logprob, _ in case()]) for case in cases.values())
    if (off := float((its - own).abs().max())) > ROUNDING:
        raise SystemExit(f"log-probs differ by {off}, so nothing was timed")
    print(f"{len(requests)} requests, log-probs at most {off:.1e} apart", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(options.rounds):
        for name in list(cases)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            cases[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
