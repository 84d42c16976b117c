"""``python -m tests.acceptance``: run groups of the protocol, one JSON line a case; or sum up a log of it.

CPU only, no network. The verbs run as processes of their own on a model of random weights that is made here.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHIM = "ACCEPTANCE_SHIM"
GROUPS = {"A": "durability", "B": "integrity", "C": "hostile", "D": "remote", "E": "ranks"}
"""Module of each group; a group is a function ``cases(ground)`` that yields :class:`harness.Result`."""


def main() -> int:
    """Run what was asked for; 1 when a case failed."""
    here = [group for group, module in GROUPS.items() if importlib.util.find_spec(f"{__package__}.{module}")]
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance", description=__doc__)
    parser.add_argument("--groups", default=",".join(here), help="letters, separated by commas (default: %(default)s)")
    parser.add_argument("--cases", help="run only cases whose name begins with one of these, as A2,B5")
    parser.add_argument("--smoke", action="store_true", help="a few cases of each kind, for the suite")
    parser.add_argument("--keep_going", action="store_true", help="do not stop at the first case that fails")
    parser.add_argument("--log", type=Path, help="append the JSON lines to this file too")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random here")
    parser.add_argument("--summary", type=Path, metavar="LOG", help="print the table of a log and do nothing else")
    asked = parser.parse_args()
    if asked.summary:
        print(table([json.loads(line) for line in asked.summary.read_text().splitlines()]))
        return 0
    if unknown := sorted(set(asked.groups.split(",")) - set(here)):
        parser.error(f"there is no group {unknown[0]} here; there are {', '.join(here)}")
    preload_faults()
    with tempfile.TemporaryDirectory(prefix="acceptance-") as folder:
        records = list(run(asked, Path(folder)))
    if SHIM in os.environ:
        shutil.rmtree(Path(os.environ[SHIM]).parent, ignore_errors=True)
    print(table(records))
    return int(any(record["result"] == "failed" for record in records))


def preload_faults() -> None:
    """Begin again with ``faults.c`` in this process and so in its forks; where it cannot be compiled, go on without."""
    if SHIM in os.environ or not (compiler := shutil.which("gcc") or shutil.which("cc")):
        return
    library = Path(tempfile.mkdtemp(prefix="acceptance-faults-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=False)
    if done.returncode == 0:
        os.environ |= {"LD_PRELOAD": str(library), SHIM: str(library)}
        os.execv(sys.executable, [sys.executable, "-m", "tests.acceptance", *sys.argv[1:]])


def run(asked: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The record of each case as it ends."""
    from tests.acceptance.harness import Ground

    ground = Ground(folder, smoke=asked.smoke, seed=asked.seed, only=tuple((asked.cases or "").split(",")))
    for group in asked.groups.split(","):
        module = importlib.import_module(f"{__package__}.{GROUPS[group]}")
        for record in _group(group, module.cases(ground)):
            line = json.dumps(record)
            print(line, flush=True)
            if asked.log:
                with asked.log.open("a") as log:
                    log.write(line + "\n")
            yield record
            if record["result"] == "failed" and not asked.keep_going:
                return


def _group(group: str, results: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Records of one group; a case that raises instead of answering has failed, and its group ends with it."""
    began = time.monotonic()
    try:
        for result in results:
            took = time.monotonic() - began
            yield {"group": group, **result.to_json(), "seconds": round(took, 2)}
            began = time.monotonic()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
        traceback.print_exc(file=sys.stderr)
        reason = f"the protocol itself stopped: {type(error).__name__}: {error}"
        yield {"group": group, "case": f"{group}?", "result": "failed", "reason": reason, "seconds": 0.0}


def table(records: list[dict[str, Any]]) -> str:
    """Counts by kind of case, as Markdown; a claim may only be made of the cases that ran."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        kinds.setdefault(record["case"].split(" ")[0].split(".")[0], []).append(record)
    lines = ["| case | passed | failed | skipped | seconds | notes |", "|---|---|---|---|---|---|"]
    for kind, found in sorted(kinds.items()):
        counts = Counter(record["result"] for record in found)
        notes = {record["reason"] for record in found if record["result"] != "passed" and record["reason"]}
        notes |= {record["note"] for record in found if record.get("note")}
        seconds = sum(record["seconds"] for record in found)
        row = [kind, *(counts[name] for name in ("passed", "failed", "skipped")), f"{seconds:.0f}"]
        lines.append("| " + " | ".join(map(str, [*row, "; ".join(sorted(notes))])) + " |")
    total = Counter(record["result"] for record in records)
    told = ", ".join(f"{total[name]} {name}" for name in ("passed", "failed", "skipped"))
    seconds = sum(record["seconds"] for record in records)
    return "\n".join([*lines, "", f"{len(records)} cases: {told}; {seconds / 60:.1f} minutes."])


if __name__ == "__main__":
    raise SystemExit(main())
