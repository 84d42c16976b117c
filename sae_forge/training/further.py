"""An SAE's folder before steps are taken in it: a new one, one to go on in, or one to be trained further than it was.

When the rate begins to fall at the end of a training, its state is kept beside the SAE. More steps or tokens go on from
there, so that a longer training is not begun anew. Where no warm-up hangs on the number of steps it is the same to the
bit as one that was asked for at once.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sae_forge.config.train import TrainConfig
from sae_forge.errors import CheckpointError
from sae_forge.progress import Progress
from sae_forge.store import files
from sae_forge.training.plan import CONFIG, settings_differ, stored_settings
from sae_forge.training.report import REPORT, load_report
from sae_forge.training.schedule import level_until, lr_at
from sae_forge.training.state import LEVEL, checkpoints

CHECKPOINTS = "checkpoints"
_MAY_GROW = {"steps", "data.shards"}
"""What a longer training may have otherwise."""


def open_folder(
    folder: Path, config: TrainConfig, settings: dict[str, Any], held: ExitStack, progress: Progress
) -> None:
    """Hold the folder of an SAE that is not finished; one that is finished is only looked at.

    Raises:
        CheckpointError: it was trained under other settings (names the first), for more steps, or by a version that
            kept no state to go on from.
        ConfigError: another process trains in it.
    """
    if config.starts_over:
        shutil.rmtree(folder, ignore_errors=True)
    stored, is_longer, finished = as_it_stands(folder, config, settings)
    if stored is None or not is_longer:
        if not finished:
            held.enter_context(files.locked(folder / CHECKPOINTS))
            files.publish_json(folder / CONFIG, settings)
        return
    held.enter_context(files.locked(folder / CHECKPOINTS))
    progress.say(_told(folder, stored, settings))
    (folder / REPORT).unlink(missing_ok=True)
    for _, path in checkpoints(folder / CHECKPOINTS) if checkpoints(folder / LEVEL) else ():
        files.discard_folder(path)  # of steps at a rate that was falling already
    files.publish_json(folder / CONFIG, settings)


def as_it_stands(
    folder: Path, config: TrainConfig, settings: dict[str, Any]
) -> tuple[dict[str, Any] | None, bool, bool]:
    """The settings of the SAE that is there, whether these train it further, and whether it is finished.

    Raises:
        CheckpointError: as :func:`open_folder`.
    """
    stored = stored_settings(folder)
    differences = [] if stored is None else settings_differ(stored, settings)
    finished = load_report(folder) is not None
    follows = set()
    if config.lr is None and (finished or (stored or settings)["steps"] != settings["steps"]):
        follows.add("lr")  # the steps, where nobody asked for a rate; for the same steps another version had another
    if finished:
        follows.add("data.held_out")  # whether text was held out is no reason to train again what is finished
    differences = [each for each in differences if each[0] not in follows]
    if stored is None or not differences:
        return stored, False, finished
    _require_longer(folder, differences)
    if not checkpoints(folder / LEVEL) and finished:
        raise CheckpointError(
            f"{folder} was trained for {stored['steps']} steps by a version that kept no state to go on from; start "
            "over with --fresh"
        )
    return stored, True, finished


def _require_longer(folder: Path, differences: list[tuple[str, Any, Any]]) -> None:
    """Refuse all but more steps, and with them other tokens of the same texts."""
    advice = "start over with --fresh or choose another --run_dir"
    for name, stored, expected in differences:
        if name not in _MAY_GROW:
            raise CheckpointError(
                f"{folder} is trained under other settings: {name} expected {expected}, found {stored}; {advice}"
            )
    steps = next(((was, now) for name, was, now in differences if name == "steps"), None)
    if steps is None:
        raise CheckpointError(f"{folder} is trained on other shards (data.shards) than are there now; {advice}")
    if not isinstance(steps[0], int) or steps[0] > steps[1]:
        raise CheckpointError(f"{folder} is trained for {steps[0]} steps, and {steps[1]} were asked for; {advice}")


def _told(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> str:
    """What going on comes to, measured by what training at once would have been."""
    was, now = stored["steps"], settings["steps"]
    schedule = {"warmup": settings["lr_warmup"], "decay": settings["lr_decay"]}
    begun = range(level_until(was, settings["lr_decay"]))
    reasons = []
    if stored["data"].get("shards") != settings["data"].get("shards"):
        reasons.append("its first steps were on other shards")
    if stored["lr"] != settings["lr"]:
        reasons.append(
            f"its first steps were at the rate of {was} ({stored['lr']:.3g}, now {settings['lr']:.3g}; --lr)"
        )
    elif any(
        lr_at(step, steps=was, peak=1, **schedule) != lr_at(step, steps=now, peak=1, **schedule) for step in begun
    ):
        reasons.append(f"its first steps warmed up as for {was} (--lr_warmup is a share of the steps)")
    told = f"{folder} is trained for {was} steps and goes on to {now}"
    if not reasons:
        return f"{told}, as if {now} had been asked for at once"
    return f"{told}; it will not be what {now} at once give, because {' and '.join(reasons)}; --fresh trains that"
