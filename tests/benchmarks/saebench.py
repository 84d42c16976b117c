"""SAEBench's unlearning evaluation, by its own functions, beside ours: the same model, SAE, questions and settings.

The filter asks every question in 24 orders, with and without its stem; then 16 settings of clamping are asked of what
is left of five sets, one to be forgotten. Times are of the processor, and count only where ids, accuracies and score
are the same. SAEBench must be importable (``pip install --no-deps --target FOLDER sae-bench``, ``PYTHONPATH=FOLDER``).
"""

import argparse
import contextlib
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from chatty_gemma import SUBJECTS, records, save
from timing import both, conditions, ratios, table, write_json

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.edit import Edit
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.subjects import AsItIs, Edited, in_force
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.models.tape import Tapes
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.measure import measure
from sae_forge.tasks.engines.multiple_choice import encode_questions
from sae_forge.tasks.engines.orders import ask_orders
from sae_forge.tasks.questions import Questions
from sae_forge.tasks.records import Domain, Question
from sae_forge.tasks.task import Asked

FORGET = next(iter(SUBJECTS))
NAME = "gemma-2-2b-it"
"""What SAEBench must believe the model to be."""
SIDE_EFFECTS = 0.99


class Result(NamedTuple):
    """One evaluation from beginning to end."""

    ids: dict[str, list[int]]
    """The questions that the filter keeps of each set."""
    score: float
    forget: dict[str, float]
    """Accuracy on what is to be forgotten, by threshold, latents and value."""
    filtered: float
    """Seconds of the processor that the filter took."""
    seconds: float

    def require(self, other: "Result") -> None:
        """Stop where another says something else."""
        same = self.ids == other.ids and abs(self.score - other.score) < 1e-9
        off = [abs(value - other.forget.get(name, -1.0)) for name, value in self.forget.items()]
        if not same or max(off) > 1e-6:
            raise SystemExit(f"they differ, so no time counts: {self}; {other}")


class Ours:
    """The whole evaluation as ``eval --sweep`` does it."""

    def __init__(self, lm: LanguageModel, sae: TopKSAE, latents: dict[float, list[int]], options: Any) -> None:
        self.lm, self.sae, self.latents, self.options = lm, sae, latents, options
        self.domains = [
            Domain(name=subject, role="forget" if name == FORGET else "retain", questions=_questions(name, options))
            for name, subject in SUBJECTS.items()
        ]
        self.point = HookPoint(options.layer)

    def run(self) -> Result:
        """Filter, then the model as it is and under every setting."""
        start, kept, ids = time.process_time(), [], {}
        for name, domain in zip(SUBJECTS, self.domains, strict=True):
            sure = ask_orders(self.lm, domain, "chat", batch_size=self.options.batch_size).ids("correct")
            ids[name] = sorted(map(int, sure))
            kept.append(replace(domain, questions=tuple(one for one in domain.questions if one.id in set(sure))))
        filtered = time.process_time() - start
        asked = [
            Asked.of(Questions(), one.questions, domain=one.name, role=one.role,
                     content=(one.questions, encode_questions(self.lm, one.questions, "chat", one.name)))
            for one in kept
        ]  # fmt: skip
        tapes, accuracies = Tapes(self.lm, self.point), {}
        for name, subject in {"": AsItIs(), **self._settings()}.items():
            with in_force(self.lm, subject) as (lm, log), SILENT.task("", None, "items") as task:
                every = measure(lm, asked, log, task, batch_size=self.options.batch_size, tapes=tapes)
            right = [[float(item.values["correct"]) for item in one.items] for one in every]  # pyright: ignore
            sides = [each for one in right[1:] for each in one]
            accuracies[name] = (sum(right[0]) / len(right[0]), sum(sides) / len(sides))
        spared = [forget for forget, sides in list(accuracies.values())[1:] if sides >= SIDE_EFFECTS]
        forget = {name: forget for name, (forget, _) in accuracies.items() if name}
        return Result(ids, 1 - min([1.0, *spared]), forget, filtered, time.process_time() - start)

    def _settings(self) -> dict[str, Edited]:
        found = {}
        for threshold, latents in self.latents.items():
            for count in (10, 20):
                for value in (25, 50, 100, 200):
                    edit = replace(clamp(tuple(latents[:count]), -float(value)), tokens="all_but_first")
                    found[f"{threshold} {len(latents[:count])} {value}"] = Edited((Edit(self.point, self.sae, edit),))
        return found


class Theirs:
    """SAEBench as released, told where questions and frequencies are."""

    def __init__(self, lm: LanguageModel, sae: TopKSAE, frequencies: Any, options: Any) -> None:
        from sae_bench.custom_saes.topk_sae import TopKSAE as TheirTopK
        from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
        from sae_bench.evals.unlearning.utils import metrics

        self.options, self.frequencies, self.metrics = options, frequencies, metrics
        self.model = hooked(lm)
        self.sae = TheirTopK(sae.d_in, sae.d_sae, sae.k, NAME, options.layer, torch.device("cpu"), torch.float32)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(self.sae, name).data.copy_(getattr(sae, name))
        self.config = UnlearningEvalConfig(
            model_name=NAME, dataset_names=list(SUBJECTS), llm_batch_size=options.batch_size // 2
        )

    @contextlib.contextmanager
    def told(self):
        def load(path: str, name: str, split: str) -> Any:
            del path, split
            return records(name, self.options.questions)

        with (
            patch.object(self.metrics, "load_dataset", load),
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()),
            tempfile.TemporaryDirectory() as folder,
        ):  # fmt: skip
            yield folder

    def run(self) -> Result:
        """As its ``run_eval`` does, frequencies and the printing of files aside."""
        from sae_bench.evals.unlearning.main import get_metrics_df, get_unlearning_scores
        from sae_bench.evals.unlearning.utils.eval import run_metrics_calculation

        with self.told() as folder:
            start = time.process_time()
            for name in SUBJECTS:
                self.metrics.save_target_question_ids(self.model, self.options.batch_size, folder, name)
            filtered = time.process_time() - start
            run_metrics_calculation(
                self.model, self.sae, None, *self.frequencies, folder, "sae", self.config, force_rerun=True
            )
            frame = get_metrics_df(f"{folder}/sae/results/metrics")
            score = float(get_unlearning_scores(frame))
            seconds = time.process_time() - start
            rows = frame.to_dict("records")
            forget = {f"{row['retain_thres']} {row['n_features']} {row['multiplier']}": row[FORGET] for row in rows}
            return Result(self._ids(folder), score, forget, filtered, seconds)

    def _ids(self, folder: str) -> dict[str, list[int]]:
        found = {}
        for name in SUBJECTS:
            called = name if name == FORGET else f"mmlu-{name.replace('_', '-')}"
            path = f"{folder}/data/question_ids/all/{called}_correct.csv"
            found[name] = sorted(np.genfromtxt(path, ndmin=1, dtype=int).tolist())
        return found


def hooked(lm: LanguageModel) -> Any:
    """The model in TransformerLens, its weights unprocessed."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    theirs = lm.config
    config = HookedTransformerConfig(
        model_name=NAME, original_architecture="Gemma2ForCausalLM", d_model=theirs.hidden_size, d_head=theirs.head_dim,
        n_heads=theirs.num_attention_heads, n_key_value_heads=theirs.num_key_value_heads,
        d_mlp=theirs.intermediate_size, n_layers=theirs.num_hidden_layers, n_ctx=theirs.max_position_embeddings,
        d_vocab=theirs.vocab_size, eps=theirs.rms_norm_eps, act_fn="gelu_pytorch_tanh", normalization_type="RMS",
        positional_embedding_type="rotary", rotary_dim=theirs.head_dim, rotary_base=10_000, use_attn_scale=True,
        attn_scale=theirs.query_pre_attn_scalar**0.5, window_size=theirs.sliding_window, use_local_attn=True,
        attn_types=["local", "global"] * (theirs.num_hidden_layers // 2), gated_mlp=True, final_rms=True,
        attn_scores_soft_cap=theirs.attn_logit_softcapping, output_logits_soft_cap=theirs.final_logit_softcapping,
        use_normalization_before_and_after=True, default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config, tokenizer=lm.tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        convert_gemma_weights(lm.model, config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return model.eval()


def main() -> None:
    """Check that both give the same, time both in turn, and print a table."""
    options = _options()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as held:
        folder = options.model or Path(held.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "config.json").exists():
            save(folder, layers=4, d_model=128, steps=options.steps)
        lm = load_model(str(folder), device="cpu")
    sae = TopKSAE(lm.d_model, 8 * lm.d_model, 16, seed=1)
    forget = _frequencies(lm, sae, options)
    retain = np.random.default_rng(0).choice([0.0, 0.005, 0.5], sae.d_sae, p=[0.4, 0.4, 0.2])  # made up
    latents = {threshold: _top(forget, retain, threshold) for threshold in (0.001, 0.01)}
    ours, theirs = Ours(lm, sae, latents, options), Theirs(lm, sae, (forget, retain), options)
    found = {"sizes": {name: value for name, value in vars(options).items() if name not in ("json", "model")}}
    found["conditions"] = conditions(torch.device("cpu"))
    results: dict[str, list[Result]] = {"SAEBench": [], "ours": []}
    for number in range(options.rounds):
        for name, one in (("SAEBench", theirs), ("ours", ours))[:: 1 if number % 2 else -1]:
            results[name].append(one.run())
        print(number, {name: each[-1]._replace(forget={}) for name, each in results.items()}, flush=True)
        results["ours"][-1].require(results["SAEBench"][-1])
    found["results"] = {name: [one._asdict() for one in each] for name, each in results.items()}
    rows = []
    for part in ("filtered", "seconds"):
        its, own = ([getattr(one, part) for one in results[name]] for name in ("SAEBench", "ours"))
        rows.append(
            ("filter" if part == "filtered" else "whole", f"{min(its):.1f}", f"{min(own):.1f}", both(ratios(its, own)))
        )
    print(found["conditions"], found["sizes"], table(("", "SAEBench, s", "ours, s", "times less"), rows), sep="\n")
    write_json(options.json, found | {"load_after": conditions(torch.device("cpu"))["load"]})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--questions", type=int, default=40, help="of each set")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts a pass takes")
    parser.add_argument("--layer", type=int, default=1, help="after which to edit, of 4")
    parser.add_argument("--steps", type=int, default=400, help="of training the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a folder where the model is, or is to be kept")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def _questions(name: str, options: Any) -> tuple[Question, ...]:
    return tuple(
        Question(id=str(number), fact=str(number), **{**one, "choices": tuple(one["choices"])})
        for number, one in enumerate(records(name, options.questions))
    )


def _frequencies(lm: LanguageModel, sae: TopKSAE, options: Any) -> Any:
    """Share of the tokens of what is to be forgotten on which each latent fires."""
    fires, tokens, point = torch.zeros(sae.d_sae), 0, HookPoint(options.layer)
    for one in records(FORGET, options.questions):
        ids = torch.tensor([lm.tokenizer(one["question"], add_special_tokens=False)["input_ids"]])
        acts = sae.latent_acts(capture(lm, [point], ids, torch.ones_like(ids))[point], torch.arange(sae.d_sae))
        fires += (acts > 0).sum(dim=(0, 1))
        tokens += ids.numel()
    return (fires / tokens).numpy().astype(float)


def _top(forget: Any, retain: Any, threshold: float) -> list[int]:
    from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

    return [int(latent) for latent in get_top_features(forget, retain, retain_threshold=threshold)]


if __name__ == "__main__":
    main()
