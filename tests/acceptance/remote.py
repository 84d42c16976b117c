"""Group D: publishing against a Hub on localhost that fails on demand: exactly one commit, or none, and nothing else.

Weights travel by the basic transfer of large files; the Xet transfer is switched off here, so nothing is said of it.
Numbers of files are those of plots beside the SAE's own: no push brings one file alone.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from sae_forge.config.push import PushConfig
from sae_forge.errors import RemoteError
from sae_forge.hub import wire
from sae_forge.hub.push import PushReport
from sae_forge.pipeline.push import publish as publish_sae
from sae_forge.sae.store import WEIGHTS, Provenance, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from tests.acceptance.harness import Ground, Kind, Result, chosen, fork, judge
from tests.acceptance.specimens import POINT
from tests.fakehub import TOKEN, FakeHub, Fault

REPO = "you/tiny-owls"
KINDS = (429, 500, 502, 503, 504, "reset", "silent")
_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))

_REPORT = {
    "domains": {"owls": {"role": "forget", "items": 4}},
    "methods": [
        {
            "name": "baseline", "kind": "baseline", "settings": {}, "seed": None, "edited_share": {}, "edit_norm": {},
            "domains": {"owls": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "roles": {}, "generation": {},
            "loss": {"forget": {"value": 2.0, "low": 1.9, "high": 2.1}},
        }
    ],
    "controls": [],
    "claims": [],
}  # fmt: skip
"""The least that a card can be made of."""


def kinds(ground: Ground) -> dict[str, Kind]:
    """The cases of the group, by kind."""
    found: dict[str, Callable[[Path], None]] = {
        f"D1 {step} {kind}": partial(retries, step, kind)
        for step in ("preupload", "upload", "commit")
        for kind in KINDS
    }
    found |= {f"D2 {count} plots": partial(atomic, count) for count in ((1, 30) if ground.smoke else (1, 300, 2000))}
    found |= {f"D2 killed {when} {step}": partial(killed, step, when) for step, when in KILLS}
    found |= {f"D3 lost response {number}": partial(lost, number) for number in range(2 if ground.smoke else 10)}
    found |= {f"D4 someone else {where}": partial(someone_else, where) for where in ("elsewhere", "here", "again")}
    found |= {f"D5 {kind}": partial(unending, kind, 0.5 if ground.smoke else 120.0) for kind in ("silent", "drip")}
    found |= {"D6 allow-list": allow_list, "D7 round trip": round_trip}
    if not ground.smoke:
        found |= {"D2 six minutes": six_minutes}
    return {name: partial(tried, name, partial(work, ground.fresh())) for name, work in found.items()}


def cases(ground: Ground) -> Iterator[Result]:
    """Every case of the group, in this process."""
    return chosen(ground, kinds(ground))


def tried(name: str, work: Callable[[], None]) -> Iterator[Result]:
    """What a case came to."""
    try:
        work()
    except AssertionError as error:
        yield judge(name, [str(error) or "an assertion failed"])
    except RemoteError as error:
        yield judge(name, [f"the push failed: {error}"])
    else:
        yield judge(name, [])


# ---- what is pushed, and where to ---------------------------------------------------------------


@contextmanager
def hub(*, silence: float = 0.5) -> Iterator[FakeHub]:
    """A Hub with a store of large files, and a client that is as patient in shorter time."""
    before = {name: os.environ.get(name) for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")}
    held = wire.FIRST_WAIT, wire.SILENCE, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE
    with FakeHub(lfs=True) as running:
        os.environ |= {"HF_ENDPOINT": running.url, "HF_TOKEN": TOKEN}
        wire.FIRST_WAIT, wire.SILENCE, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = (
            0.01,
            silence,
            True,
            False,
        )
        try:
            yield running
        finally:
            wire.FIRST_WAIT, wire.SILENCE, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = held
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def artefacts(folder: Path, plots: int = 1, sae: TopKSAE | None = None) -> Path:
    """An SAE and a report with so many plots."""
    save_sae(folder / "sae", sae or TopKSAE(7, 23, 3), Provenance(model="tiny-llama", hook_point=str(POINT)))
    weights = files.file_sha256(folder / "sae" / WEIGHTS)
    files.publish_json(folder / "eval" / "eval.json", {**_REPORT, "protocol": {"sae_weights": weights}})
    (folder / "eval" / "plots").mkdir()
    for number in range(plots):
        (folder / "eval" / "plots" / f"plot-{number:04d}.png").write_bytes(_PNG + str(number).encode())
    return folder


def publish(folder: Path, **settings: object) -> PushReport:
    """Push it."""
    return publish_sae(folder / "sae", REPO, PushConfig(**settings), evaluation=folder / "eval")  # pyright: ignore[reportArgumentType]


def require_one_commit(running: FakeHub, folder: Path, *, others: int = 0) -> None:
    """The Hub's own first commit, ``others`` of someone else, and one of ours with every file whole."""
    repo = running.repos[REPO]
    assert len(repo.main) == 2 + others, f"{len(repo.main) - 1 - others} commits of ours"
    listed = json.loads(repo.files["config.json"])["sae_forge"]["files"]
    plots = {f"plots/{path.name}" for path in (folder / "eval" / "plots").glob("*.png")}
    assert plots <= set(listed) <= set(repo.files), "files are missing"
    for path, expected in listed.items():
        assert hashlib.sha256(repo.files[path]).hexdigest() == expected, f"{path} has other bytes"


# ---- D1 to D4 -----------------------------------------------------------------------------------


def retries(step: str, kind: int | str, scratch: Path) -> None:
    """One request fails once; a wait that the server asks for is kept."""
    folder, asked = artefacts(scratch), {"Retry-After": "1"} if kind == 429 else {}
    with hub() as running:
        running.faults.append(Fault(step, kind, headers=asked))
        started = time.monotonic()
        publish(folder)
        took = time.monotonic() - started
        require_one_commit(running, folder)
        assert running.faults[0].times == 0, "the fault was never met"
        assert running.steps().count(step) <= wire.TRIES
        assert not asked or took >= 1, f"asked to wait 1 s, it waited {took:.2f} s"


def atomic(plots: int, scratch: Path) -> None:
    """However many files, one commit."""
    folder = artefacts(scratch, plots)
    with hub(silence=60.0) as running:
        publish(folder)
        require_one_commit(running, folder)


KILLS = (
    *((step, "before") for step in ("look", "create", "validate", "preupload", "upload", "commit")),
    *((step, "after") for step in ("create", "preupload", "upload", "commit")),
)
"""Steps before and after whose work on the Hub the pushing process dies."""


def killed(step: str, when: str, scratch: Path) -> None:
    """The process is killed while it pushes: no commit or the whole one; pushed again it is there once."""
    folder = artefacts(scratch)
    with hub(silence=60.0) as running:
        died = threading.Event()

        def kill() -> None:
            verb.signal(signal.SIGKILL)
            died.set()

        verb = fork(lambda: (time.sleep(0.2), publish(folder)), scratch / "output.txt")
        running.faults.append(Fault(step, "late" if when == "before" else "after", before=kill))
        ended = verb.wait()
        assert ended.code == 128 + signal.SIGKILL and died.is_set(), f"it was to be killed: {ended.output[-300:]}"
        time.sleep(0.2)  # the Hub may still be acting on the request of the dead
        if REPO in running.repos and len(running.repos[REPO].main) > 1:
            require_one_commit(running, folder)
        publish(folder)
        require_one_commit(running, folder)


def lost(number: int, scratch: Path) -> None:
    """The Hub commits and the answer is lost, or is no answer: nothing is posted twice."""
    folder = artefacts(scratch, plots=1 + number)
    pull = number % 3 == 2
    with hub() as running:
        if pull:
            running.add_repo(REPO)
        running.faults.append(Fault("commit", "garbage" if number % 2 else "lost"))
        publish(folder, create_pr=pull)
        repo = running.repos[REPO]
        assert running.steps().count("commit") == 1, "it was posted again"
        assert repo.pulls == (["refs/pr/1"] if pull else []), f"pull requests: {repo.pulls}"
        if not pull:
            require_one_commit(running, folder)


def someone_else(where: str, scratch: Path) -> None:
    """Another commit lands between reading and posting: borne once, and never over a file of ours."""
    folder, touched = artefacts(scratch), "eval.json" if where == "here" else "notes.txt"
    with hub() as running:
        line = running.add_repo(REPO).main

        def meddle() -> None:
            line.append(running.new_commit("someone else", {**line[-1].files, touched: os.urandom(4)}))

        running.faults.append(Fault("commit", 412, times=2 if where == "again" else 1, before=meddle))
        if where == "elsewhere":
            publish(folder)
            return require_one_commit(running, folder, others=1)
        try:
            publish(folder)
        except RemoteError as error:
            assert error.exit_code == 5 and "someone else" in str(error), str(error)
        else:
            raise AssertionError("it went over someone else's commit")
        return _require_untouched(line, touched)


def _require_untouched(line: list, touched: str) -> None:
    assert all(commit.message in ("initial", "someone else") for commit in line), "a commit of ours landed"
    assert set(line[-1].files) == {".gitattributes", touched}


# ---- D5 to D7 -----------------------------------------------------------------------------------


def unending(kind: str, silence: float, scratch: Path) -> None:
    """A server that never finishes an answer: each attempt ends within its limit and ten seconds."""
    folder, tries = artefacts(scratch), wire.TRIES
    wire.TRIES = 1
    try:
        with hub(silence=silence) as running:
            running.add_repo(REPO)
            running.faults.append(Fault("commit", kind, times=9))
            started = time.monotonic()
            try:
                publish(folder)
            except RemoteError as error:
                took = time.monotonic() - started
                assert took <= silence + 10, f"{took:.0f} s"
                assert error.exit_code == 5
            else:
                raise AssertionError("it took an unfinished answer for one")
            assert len(running.repos[REPO].main) == 1
    finally:
        wire.TRIES = tries


def six_minutes(scratch: Path) -> None:
    """The Hub takes the weights so slowly that it lasts six minutes, and then has a moment's trouble: one commit."""
    folder = artefacts(scratch, sae=TopKSAE(256, 16384, 3))
    with hub(silence=120.0) as running:
        running.slow = 360.0
        running.faults.append(Fault("commit", 503))
        started = time.monotonic()
        publish(folder)
        assert time.monotonic() - started >= 360.0, "it was no slow upload"
        assert running.steps().count("upload") == 1, "it was uploaded more than once"
        require_one_commit(running, folder)


def allow_list(scratch: Path) -> None:
    """Eight planted files, links among them, stay at home."""
    folder, canary = artefacts(scratch), b"a canary that stays at home"
    (scratch / "outside.txt").write_bytes(canary)
    for place in (folder / "sae", folder / "eval", folder / "eval" / "plots"):
        for name in (".env", ".cfg.json.swp", "core", "token", "items.parquet", "notes.txt", "id_rsa"):
            (place / name).write_bytes(canary)
        (place / "linked.png").symlink_to(scratch / "outside.txt")
    (folder / "eval" / "plots" / "no-picture.png").write_bytes(canary)
    with hub() as running:
        publish(folder)
        published = {content for commit in running.repos[REPO].main for content in commit.files.values()}
        assert not any(canary in content for content in published | {one.body for one in running.requests})
        assert not any(name.endswith(("linked.png", "no-picture.png")) for name in running.repos[REPO].files)


def round_trip(scratch: Path) -> None:
    """What is downloaded is what the published manifest says, and loads as the SAE that was pushed."""
    folder = artefacts(scratch)
    with hub() as running:
        publish(folder)

        def download(path: str) -> bytes:
            with urllib.request.urlopen(f"{running.url}/{REPO}/resolve/main/{path}", timeout=10) as answer:
                return answer.read()

        listed = json.loads(download("config.json"))["sae_forge"]["files"]
        for path, expected in listed.items():
            assert hashlib.sha256(download(path)).hexdigest() == expected, path
        for name in ("cfg.json", WEIGHTS):
            assert download(f"{POINT}/{name}") == (folder / "sae" / name).read_bytes(), name
    shutil.rmtree(scratch)
