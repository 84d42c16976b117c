"""Everything that only a GPU can show, in one command of a few minutes: correctness, benchmarks, goals, profile.

Each part runs in a process of its own, under a time limit, so one that fails, hangs or breaks the device leaves the
others standing; its traceback is in the results. They are written anew after each part, for the run may be cut short.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEEDED = ("torch", "triton", "transformers", "tokenizers", "safetensors", "xxhash", "numpy", "jaxtyping")
RESULTS, TABLES = "gpu.json", "gpu.md"
sys.path.insert(0, str(ROOT))  # where sae_forge is not installed


def main() -> None:
    """Run every part, write results, and exit with an error if a kernel is wrong."""
    options = _options()
    if options.part is not None:
        _child(options)
        return
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{', '.join(missing)} cannot be imported here; install them or bring their wheels")
    import torch
    from gpu_parts import CORRECTNESS, PARTS

    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no CUDA device here; --device cpu --tiny runs without one")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    on_card = options.device != "cpu"
    checks = dict(CORRECTNESS) if not options.tiny else dict(list(CORRECTNESS.items())[:1])
    waves = [list(checks)] if on_card else [[name] for name in checks]
    waves += [[name] for name in PARTS]
    results: dict[str, Any] = {"conditions": _conditions(options), "parts": {}}
    for wave in waves:
        chosen = [name for name in wave if not options.parts or any(part in name for part in options.parts)]
        limits = {name: min((checks | PARTS)[name].seconds, end - time.monotonic()) for name in chosen}
        for name, result in _run(limits, options).items():
            results["parts"][name] = result
            print(f"{name}: {result['status']} in {result['seconds']:.0f} s", flush=True)
        _write(options.out, results)
        if any(result["status"] != "passed" for name, result in results["parts"].items() if name in checks):
            break  # no time counts of a kernel that is wrong
    print((options.out / TABLES).read_text(encoding="utf-8"))
    failed = [name for name, result in results["parts"].items() if result["status"] != "passed"]
    if wrong := [name for name in failed if name in checks or name == "same step"]:
        raise SystemExit(f"not correct, or not seen to be: {', '.join(wrong)}; no time above can be trusted")
    if failed:
        raise SystemExit(f"{len(failed)} parts brought no numbers: {', '.join(failed)}; see {RESULTS}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU: shows that the program runs, no more")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help=f"for {RESULTS}, {TABLES}")
    parser.add_argument("--parts", nargs="*", help="only those with one of these in their names")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the other side -----------------------------------------------------------------------------


def _child(options: argparse.Namespace) -> None:
    """One part; its result goes out as the last line."""
    result: dict[str, Any] = {"status": "passed"}
    try:
        import torch
        from gpu_parts import CORRECTNESS, PARTS, Scale

        found = (CORRECTNESS | PARTS)[options.part].run(Scale(torch.device(options.device), options.tiny))
        result |= {
            "numbers": found.numbers,
            "goals": [goal._asdict() | {"share": goal.share} for goal in found.goals],
            "rows": [goal.line() for goal in found.goals],
            "text": found.text,
        }
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent reports it and goes on
        result = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000], "trace": traceback.format_exc()}
    print(f"\n{json.dumps(result, default=str)}", flush=True)


# ---- this side ----------------------------------------------------------------------------------


def _run(limits: dict[str, float], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Some parts side by side, each for its own time at most."""
    began = time.monotonic()
    begun = {name: _begin(name, options) for name, limit in limits.items() if limit > 5}
    found = {name: {"status": "no time left", "seconds": 0.0} for name in limits if name not in begun}
    for name, process in begun.items():
        try:
            out, noise = process.communicate(timeout=max(1.0, limits[name] - (time.monotonic() - began)))
            result = _last_line(out) or {
                "status": "failed",
                "why": f"exit {process.returncode}",
                "trace": noise[-4000:],
            }
        except subprocess.TimeoutExpired:
            process.kill()
            out, noise = process.communicate()
            result = {"status": "timed out", "why": f"after {limits[name]:.0f} s", "trace": (out + noise)[-4000:]}
        found[name] = result | {"seconds": time.monotonic() - began}
    return found


def _begin(name: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    arguments = [sys.executable, __file__, "--part", name, "--device", options.device]
    return subprocess.Popen(
        arguments + ["--tiny"] * options.tiny, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def _last_line(out: str) -> dict[str, Any] | None:
    lines = out.splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    import triton
    from timing import conditions

    versions = {"triton": triton.__version__, "transformers": transformers.__version__}
    return conditions(torch.device(options.device)) | versions | {"tiny": options.tiny}


def _write(out: Path, results: dict[str, Any]) -> None:
    """Both files, as far as the run has come."""
    from timing import table

    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    parts = results["parts"]
    head = ("goal", "asked", "measured", "share", "")
    goals = [tuple(row) for result in parts.values() for row in result.get("rows", ())]
    chapters = [f"{results['conditions']}", f"## Goals\n\n{table(head, goals)}"]
    for name, result in parts.items():
        said = result.get("text") or result.get("why", "")
        chapters.append(f"## {name} ({result['status']}, {result['seconds']:.0f} s)\n\n{said}")
    (out / TABLES).write_text("\n\n".join(chapters) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
