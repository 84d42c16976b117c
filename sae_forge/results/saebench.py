"""SAEBench's result of its unlearning evaluation: written of a sweep on filtered questions, and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_forge.errors import DataError
from sae_forge.results.foreign import is_number, read_foreign
from sae_forge.results.report import Report

TYPE, METRIC = "unlearning", "unlearning_score"
MAX_BYTES = 2**24


def saebench_result(report: Report, method: str = "clamp", *, eval_id: str = "") -> dict[str, Any] | None:
    """The result of one method's sweep in SAEBench's schema; None where SAEBench defines no score for it.

    No time is noted, so the same run gives the same bytes: ``datetime_epoch_millis`` is 0.
    """
    tuned = report.sweep.methods.get(method) if report.sweep else None
    if tuned is None or tuned.saebench_score is None:
        return None
    return {
        "eval_type_id": TYPE,
        "eval_config": {"intervention_method": method, "configurations": tuned.configurations},
        "eval_id": eval_id,
        "datetime_epoch_millis": 0,
        "eval_result_metrics": {TYPE: {METRIC: tuned.saebench_score}},
        "eval_result_details": [],
        "sae_bench_commit_hash": "",
        "sae_lens_id": str(report.protocol.get("sae", "")),
        "sae_lens_release_id": "",
        "sae_lens_version": "",
        "sae_cfg_dict": {"hook_name": str(report.protocol.get("hook_point", ""))},
    }


def read_saebench(path: Path) -> tuple[str, float]:
    """The SAE and the unlearning score of a result file of SAEBench.

    Raises:
        DataError: it is missing, no JSON, of another evaluation, or has no score between 0 and 1.
    """
    advice = f"is larger than {MAX_BYTES >> 20} MiB; give a result of SAEBench"
    said = read_foreign(path, most=MAX_BYTES, too_large=advice)
    if not isinstance(said, Mapping) or said.get("eval_type_id") != TYPE:
        found = said.get("eval_type_id") if isinstance(said, Mapping) else type(said).__name__
        raise DataError(f"{path} is no result of SAEBench's {TYPE} evaluation: eval_type_id is {str(found)[:40]!r}")
    metrics = said.get("eval_result_metrics")
    told = metrics.get(TYPE) if isinstance(metrics, Mapping) else None
    score = told.get(METRIC) if isinstance(told, Mapping) else None
    if score is None or not is_number(score) or not 0 <= score <= 1:
        place = f"eval_result_metrics.{TYPE}.{METRIC}"
        raise DataError(f"{path}: {place} should be between 0 and 1, not {str(score)[:40]!r}")
    return f"{said.get('sae_lens_release_id', '')}:{said.get('sae_lens_id', '')}".strip(":"), float(score)
