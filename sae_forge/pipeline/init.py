"""``init``: a commented file of settings for a user's own model and texts, with what they will take on this machine."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_forge.collect_plan import Job, fitted, peak_bytes, plan
from sae_forge.config.fields import described
from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import Manifest
from sae_forge.errors import ConfigError
from sae_forge.models.loading import LanguageModel
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import corpora
from sae_forge.pipeline.reckoning import duration, pace_of, step_seconds
from sae_forge.store import files

GB = 1e9


def init(config: TrainConfig, bench: Bench, out: Path) -> Outcome:
    """Write ``out``: settings that ``run`` takes with ``--config``, each with why it is so.

    Raises:
        ConfigError: the file is there already, or no text to forget was named.
        DataError: a corpus is missing, empty or has no text field.
    """
    if out.exists():
        raise ConfigError(f"{out} is there; name another with --out, or delete it")
    if config.forget is None:
        raise ConfigError("name the text to forget with --forget, and text to keep with --retain")
    lm = bench.lm
    config = fitted(config, lm)
    jobs = plan(config, lm, corpora(config))
    for remark in (remark for job in jobs for remark in job.remarks):
        bench.progress.say(remark)
    counts = {job.name: _tokens_of(job) for job in jobs}
    tokens = sum(count or 0 for count in counts.values())
    points = list(jobs[0].folders)
    rate = pace_of(config, lm, points).up_to(points)
    width = lm.width(points[0])
    d_sae = config.saes(width)[0].d_sae
    trained = config.fitted(tokens)  # little text is taken several times, in smaller batches
    step = step_seconds(trained, width, d_sae)
    steps = trained.max_steps or max(1, trained.epochs * tokens // trained.batch_size)
    weights, buffers = peak_bytes(config, lm, jobs)
    told = {
        "tokens": tokens,
        "uncounted": [name for name, count in counts.items() if count is None],
        "shards_bytes": sum(job.bytes_to_write for job in jobs),
        "collect_seconds": tokens / rate,
        "tokens_per_second": rate,
        "d_sae": d_sae,
        "steps": steps,
        "train_seconds": steps * step,
        "memory_bytes": weights + buffers,
    }
    short = ""
    if tokens < trained.batch_size and not told["uncounted"]:
        short = f"; less than a batch of {trained.batch_size:,}, refused by train: more text or a smaller --batch_size"
    files.publish_bytes(out, "\n".join(_lines(config, lm, jobs, told, counts)).encode())
    return Outcome(
        run=bench.run,
        outputs={"config": out},
        metrics=told,
        summary=f"{out}: {_reckoned(told)}{short}",
        then=(f"sae-forge run --config {out} --dry_run", f"sae-forge run --config {out}"),
        noted=False,
    )


def _tokens_of(job: Job) -> int | None:
    """Tokens of a corpus, about, or as collected; None where nobody can know: all of a dataset on the Hub."""
    if job.pending:
        return job.expected
    return Manifest.read(next(iter(job.folders.values()))).rows


def _folder_of_its_own(config: TrainConfig, jobs: Sequence[Job]) -> Path | None:
    """Where nobody named a run folder and the model's own holds other text to forget, which ``run`` would refuse."""
    name = next(job.name for job in jobs if job.name.startswith("forget-"))
    held = {folder.name for folder in (config.run_folder / "shards").glob("forget-*")}
    if config.run_dir is not None or not held - {name}:
        return None
    return config.run_folder.with_name(f"{config.run_folder.name}-{name.removeprefix('forget-')}")


_SHOWN = {"model", "layer", "site", "forget", "retain", "text_field", "ctx_len", "max_tokens", "storage_dtype"}
_SHOWN |= {"k", "expansion_factor", "batch_size", "fresh", "resume"}
"""Settings that have a line of their own in the file, or say nothing of the run."""


def _reckoned(told: dict[str, Any]) -> str:
    more = f" beside {' and '.join(told['uncounted'])}, not counted (--max_tokens)" if told["uncounted"] else ""
    return (
        f"about {told['tokens']:,} tokens{more}, {told['shards_bytes'] / GB:.2f} GB of shards, "
        f"{duration(told['collect_seconds'])} to collect; {told['d_sae']:,} latents, {told['steps']:,} steps, "
        f"{duration(told['train_seconds'])} to train; {told['memory_bytes'] / GB:.1f} GB of memory"
    )


def _lines(
    config: TrainConfig,
    lm: LanguageModel,
    jobs: Sequence[Job],
    told: dict[str, Any],
    counts: Mapping[str, int | None],
) -> Iterator[str]:
    """The file: what is decided as settings, what may be changed as comments."""
    yield f"# Settings for {lm.name} on {lm.device}; use them with: sae-forge run --config FILE"
    yield f"# Reckoned here: {_reckoned(told)}."
    yield "# A flag beats this file; sae-forge COMMAND --help lists all there is."
    apart = _folder_of_its_own(config, jobs)
    why = {"run_dir": f"{config.run_folder} holds other text"} if apart else {}
    yield from _settings(config, "The model", {
        "model": f"{lm.n_layers} layers, {lm.d_model} wide, at most {config.ctx_len} tokens a text here",
        "layer": "edits reach what lies above; a third, half and two thirds of the way up are worth trying",
        "site": None,
        **why,
    }, run_dir=apart, layer=(next(iter(jobs[0].folders)).layer,))  # fmt: skip
    seen = "; ".join(f"{name}: {'unknown' if count is None else f'{count:,}'} tokens" for name, count in counts.items())
    yield from _settings(config, f"The text ({seen})", {
        "forget": "what the model is to lose",
        "retain": "what it is to keep; text of the same genre tells topic from style",
        "text_field": None,
        "ctx_len": "tokens of a sequence",
        "max_tokens": f"of each corpus; {told['tokens_per_second']:,.0f} tokens a second were read here",
        "storage_dtype": "int8 takes half the disk, where rounding loses little",
    })  # fmt: skip
    yield from _settings(config, "The SAE", {
        "k": "latents a token; several (16,32,64) are trained at once",
        "expansion_factor": f"{told['d_sae']:,} latents; more are finer and take more text",
        "batch_size": "tokens a step",
    })  # fmt: skip
    also: dict[str, str | None] = {name: None for name in described(TrainConfig) if name in config.spelled - _SHOWN}
    if also:
        yield from _settings(config, "Asked for too", also)
    yield "\n# ---- Questions (JSON lines of question, choices, answer); without any, loss alone is measured ----"
    for role in ("forget", "neighbour", "retain"):
        yield f'# {role}_questions = ["{role}.jsonl"]'
    yield "\n# ---- The edit ----"
    yield '# methods = ["all"]   # every published method in one table'
    yield "# sweep = true        # tuned on one half of the questions, reported on the other"
    yield ""


def _settings(config: TrainConfig, heading: str, why: dict[str, str | None], **decided: Any) -> Iterator[str]:
    """The settings of these names; one that is as it would be anyway is a comment itself."""
    yield f"\n# ---- {heading} ----"
    defaults = described(TrainConfig)
    for name, reason in why.items():
        value = decided.get(name, getattr(config, name))
        if value is None:
            continue
        said = f"{name} = {_toml(value)}"
        open_to = "" if name in config.spelled or name in decided or value != defaults[name].default else "# "
        yield f"{open_to}{said:<39} # {reason}" if reason else f"{open_to}{said}"


def _toml(value: Any) -> str:
    """A value as TOML; its strings are those of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, str | Path) else str(value)
