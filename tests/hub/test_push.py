"""Publishing, with the real client against a Hub on localhost: one commit or none, and nothing that should stay."""

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from fakehub import TOKEN, FakeHub, Fault
from huggingface_hub import ModelCard
from reports import filled

from sae_forge.config.push import PushConfig
from sae_forge.errors import CheckpointError, ConfigError, DataError, ForgeError, RemoteError
from sae_forge.hub import wire
from sae_forge.hub.push import PushReport
from sae_forge.pipeline.push import publish
from sae_forge.sae.store import Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files

REPO = "you/tiny-wizards"
POINT = "blocks.1.hook_resid_post"
CANARY = "The quick wizard hid seventeen silver owls."
ALL = {
    ".gitattributes",
    "README.md",
    "config.json",
    "eval.json",
    f"{POINT}/cfg.json",
    f"{POINT}/sae_weights.safetensors",
    f"{POINT}/features.json",
    "plots/tradeoff.png",
}
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


class Artefacts:
    """An SAE, a selection and a report that belong together."""

    def __init__(self, root: Path, sae: TopKSAE | None = None) -> None:
        self.sae, self.selection, self.report = root / "sae", root / "inlp-0.json", root / "eval"
        provenance = Provenance(
            model="tiny-llama",
            hook_point=POINT,
            hf_hook_name="model.layers.1",
            ctx_len=63,
            bos="row",
            datasets=("saga",),
        )
        save_sae(self.sae, sae or TopKSAE(d_in=7, d_sae=23, k=3), provenance)
        files.publish_json(
            self.sae / "report.json",
            {"steps": 5, "tokens": 9, "fvu": 0.0123, "l0": 3.0, "dead_share": 0.0, "ce_recovered": None},
        )
        weights = files.file_sha256(self.sae / "sae_weights.safetensors")
        files.publish_json(self.selection, selection(weights))
        files.publish_json(self.report / "eval.json", report(weights))
        (self.report / "plots").mkdir()
        (self.report / "plots" / "tradeoff.png").write_bytes(PNG)
        (self.report / "items.parquet").write_bytes(CANARY.encode())

    def push(self, **settings) -> PushReport:
        progress = settings.pop("progress", None)
        return publish(
            self.sae,
            settings.pop("repo", REPO),
            PushConfig(**settings),
            selection=self.selection,
            evaluation=self.report,
            **({"progress": progress} if progress else {}),
        )


def selection(weights: str) -> dict:
    stats = {"fires": 5, "mean": 0.1, "mean_square": 0.2, "peak": 3.0}
    latents = [
        {
            "index": index,
            "score": 2.5 - index / 10,
            "ratio": 9.0,
            "diff": 0.25,
            "act_ratio": 7.0,
            "forget_frequency": 0.125,
            "retain_frequency": 0.001,
            "forget": stats,
            "retain": {"stones": stats},
            "snippets": [{"text": CANARY, "act": 3.0, "seq_id": 1, "position": 2}],
        }
        for index in (4, 11, 2)
    ]
    corpus = {"name": "wizards", "tokens": 99, "manifest": "ab", "rates_every": 1}
    return {
        "format": 2,
        "sae": f"{POINT}/k3-d23-s0",
        "weights": weights,
        "d_sae": 23,
        "method": "inlp",
        "settings": {"sort_by": "score"},
        "forget_corpus": corpus,
        "retain_corpora": {"stones": {**corpus, "name": "stones"}},
        "requested": 3,
        "candidates": 5,
        "filtered": {"rare": 18},
        "latents": latents,
        "retain_rates": {"stones": [0.0, 0.5]},
        "dead": [0, 3],
        "refusal_latent": None,
        "analysis": None,
    }


def report(weights: str) -> dict:
    def estimate(value: float) -> dict:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def method(name: str, accuracy: float, **settings) -> dict:
        return {
            "name": name,
            "kind": "baseline" if name == "baseline" else "hook",
            "settings": settings,
            "domains": {
                "wizards|saga": {"accuracy": estimate(accuracy), "logprob": estimate(-4.0)},
                "stones": {"accuracy": estimate(0.99)},
            },
            "loss": {"forget": estimate(2.0), "retain": estimate(1.0)},
            "edited_share": {"forget": 0.5, "retain": 0.01},
            "generation": {"distinct_3": estimate(0.9)},
        }

    of = {"of": "scale", "scale": -7.0, "num_features": 3, "kind": "isotropic"}
    metrics = {
        "domains": {"wizards|saga": {"role": "forget", "items": 200}, "stones": {"role": "retain", "items": 210}},
        "methods": [
            method("baseline", 0.98),
            method("scale", 0.2625, scale=-7.0, num_features=3),
            method("zero", 0.9, num_features=3),
            *({**method("random", 0.85 + 0.05 * seed, **of), "seed": seed} for seed in range(3)),
        ],
        "protocol": {"sae_weights": weights, "sae": "/home/someone/secret/place"},
        "claims": ["Scale -7 on 3 latents: forget questions fell.", "  Side effects: none."],
    }
    return filled(metrics).to_json()


@pytest.fixture
def made(tmp_path: Path) -> Artefacts:
    return Artefacts(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(wire, "FIRST_WAIT", 0.01)
        monkeypatch.setattr(wire, "SILENCE", 0.5)
        yield running


# ---- one commit ---------------------------------------------------------------------------------


def test_everything_arrives_in_one_commit(made: Artefacts, hub: FakeHub):
    pushed = made.push()
    repo = hub.repos[REPO]
    assert len(repo.main) == 2  # the Hub's own first commit, and ours
    assert set(repo.files) == ALL
    assert pushed.commit == repo.main[-1].oid
    assert pushed.changed and not repo.private
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert repo.files[f"{POINT}/{name}"] == (made.sae / name).read_bytes()
    listed = json.loads(repo.files["config.json"])["sae_forge"]["files"]
    assert set(listed) == ALL - {".gitattributes", "config.json"}


def test_pushing_the_same_again_does_nothing(made: Artefacts, hub: FakeHub):
    first, second = made.push(), made.push()
    assert len(hub.repos[REPO].main) == 2
    assert (second.commit, second.changed) == (first.commit, False)
    assert "nothing to do" in second.summary()


def test_a_later_push_takes_away_what_it_no_longer_brings_and_nothing_else(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO, files={"notes/mine.txt": b"mine"})
    made.push()
    made.push()  # a repository of ours with a stranger's file in it stays ours
    publish(made.sae, REPO, PushConfig())
    gone = {"eval.json", f"{POINT}/features.json"}  # plots stood with the report
    assert set(hub.repos[REPO].files) == ALL - gone - {"plots/tradeoff.png"} | {"notes/mine.txt"}
    assert len(hub.repos[REPO].main) == 3


FAULTS = [
    *[Fault(step, kind) for step in ("look", "validate", "preupload", "commit") for kind in (408, 429, 500, 503, 504)],
    *[Fault(step, kind) for step in ("look", "preupload", "commit") for kind in ("reset", "silent", "garbage", "lost")],
    *[Fault("create", kind) for kind in (503, "lost", "reset")],
    Fault("commit", 503, times=4),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.step}-{fault.kind}-{fault.times}")
def test_a_passing_fault_still_gives_exactly_one_commit(made: Artefacts, hub: FakeHub, fault: Fault):
    hub.faults.append(Fault(fault.step, fault.kind, fault.times))
    pushed = made.push()
    assert hub.faults[0].times == 0, "the fault was never met"
    assert len(hub.repos[REPO].main) == 2
    assert set(hub.repos[REPO].files) == ALL
    assert pushed.commit == hub.repos[REPO].main[-1].oid


def test_a_lost_answer_is_not_posted_again(made: Artefacts, hub: FakeHub):
    hub.faults.append(Fault("commit", "lost"))
    made.push()
    assert hub.steps().count("commit") == 1


@pytest.mark.slow
def test_the_wait_the_server_asks_for_is_kept(made: Artefacts, hub: FakeHub):
    waited = []
    hub.faults.append(Fault("commit", 429, headers={"Retry-After": "1"}))

    class Watcher:
        def say(self, line: str) -> None:
            waited.append(line)

        def task(self, title, total, unit):
            raise AssertionError

    made.push(progress=Watcher())
    assert any("429" in line and "in 1 s" in line for line in waited)
    assert len(hub.repos[REPO].main) == 2


def test_a_wait_beyond_all_patience_is_told_and_not_waited(made: Artefacts, hub: FakeHub):
    hub.faults.append(Fault("commit", 429, times=9, headers={"Retry-After": "4000"}))
    with pytest.raises(RemoteError, match=r"429.*try again in 4000 s"):
        made.push()
    assert hub.steps().count("commit") == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", ["look", "preupload", "commit"])
@pytest.mark.parametrize("kind", [503, "reset", "silent"])
def test_a_lasting_fault_ends_in_one_line_with_nothing_published(made: Artefacts, hub: FakeHub, step: str, kind):
    hub.add_repo(REPO)
    hub.faults.append(Fault(step, kind, times=1000))
    with pytest.raises(
        RemoteError, match=f"{kind if kind == 503 else 'gave no answer'}.* 6 times; nothing was published"
    ):
        made.push()
    assert len(hub.repos[REPO].main) == 1
    assert hub.steps().count(step) <= wire.TRIES + (step == "look")


def test_a_pull_request_leaves_main_alone(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    pushed = made.push(create_pr=True)
    repo = hub.repos[REPO]
    assert len(repo.main) == 1
    assert repo.pulls == ["refs/pr/1"] == [pushed.revision]
    assert set(repo.branches["refs/pr/1"][-1].files) == ALL
    assert pushed.url is not None and pushed.url.endswith("/discussions/1")


def test_a_pull_request_whose_answer_was_lost_is_opened_once(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    hub.faults.append(Fault("commit", "lost"))
    pushed = made.push(create_pr=True)
    assert hub.repos[REPO].pulls == ["refs/pr/1"] == [pushed.revision]
    assert pushed.url == f"{hub.url}/{REPO}/discussions/1"


@pytest.mark.parametrize("exists", [True, False])
def test_a_branch_is_made_and_main_left_alone(made: Artefacts, hub: FakeHub, exists: bool):
    if exists:
        hub.add_repo(REPO)
    pushed = made.push(branch="trial/one")
    repo = hub.repos[REPO]
    assert (len(repo.main), len(repo.branches["trial/one"])) == (1, 2)
    assert set(repo.branches["trial/one"][-1].files) == ALL
    assert pushed.revision == "trial/one"


def test_private_makes_the_repository_private(made: Artefacts, hub: FakeHub):
    made.push(private=True)
    assert hub.repos[REPO].private


def test_private_refuses_a_repository_that_is_public(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    with pytest.raises(RemoteError, match="public already"):
        made.push(private=True)
    assert len(hub.repos[REPO].main) == 1


# ---- someone else is there ----------------------------------------------------------------------


def meddle(hub: FakeHub, path: str):
    line = hub.repos[REPO].main
    return lambda: line.append(hub.new_commit("someone else", {**line[-1].files, path: os.urandom(4)}))


def test_a_stranger_elsewhere_in_the_repository_is_borne_once(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    hub.faults.append(Fault("commit", 412, before=meddle(hub, "notes.txt")))
    made.push()
    repo = hub.repos[REPO]
    assert len(repo.main) == 3
    assert set(repo.files) == ALL | {"notes.txt"}


def test_a_stranger_who_keeps_committing_wins(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    hub.faults.append(Fault("commit", 412, times=2, before=meddle(hub, "notes.txt")))
    with pytest.raises(RemoteError, match="keeps committing"):
        made.push()
    assert set(hub.repos[REPO].files) == {".gitattributes", "notes.txt"}


def test_a_file_of_ours_changed_by_a_stranger_meanwhile_is_not_overwritten(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    hub.faults.append(Fault("commit", 412, before=meddle(hub, "eval.json")))
    with pytest.raises(RemoteError, match=r"someone else changed eval\.json"):
        made.push()
    assert hub.steps().count("commit") == 1


def test_a_commit_between_our_reading_and_our_posting_is_noticed(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO)
    hub.faults.append(Fault("commit", "late", before=meddle(hub, "eval.json")))
    with pytest.raises(RemoteError, match="someone else changed"):
        made.push()
    assert set(hub.repos[REPO].files) == {".gitattributes", "eval.json"}


@pytest.mark.parametrize("path", ["config.json", f"{POINT}/cfg.json"])
def test_files_that_no_push_wrote_are_not_overwritten(made: Artefacts, hub: FakeHub, path: str):
    hub.add_repo(REPO, files={path: b'{"model_type": "llama"}', "README.md": b"a stub"})
    with pytest.raises(RemoteError, match=f"holds a {path} that sae-forge did not write"):
        made.push()
    assert len(hub.repos[REPO].main) == 1


def test_the_stub_of_a_fresh_repository_is_replaced(made: Artefacts, hub: FakeHub):
    hub.add_repo(REPO, files={"README.md": b"---\nlicense: mit\n---"})
    made.push()
    assert b"sparse autoencoder" in hub.repos[REPO].files["README.md"]


# ---- what stays at home -------------------------------------------------------------------------


def everything_seen(hub: FakeHub) -> bytes:
    published = b"".join(
        one.oid.encode() + content
        for repo in hub.repos.values()
        for line in repo.branches.values()
        for one in line
        for content in one.files.values()
    )
    return published + b"".join(request.body + request.path.encode() for request in hub.requests)


def test_planted_files_stay_at_home(made: Artefacts, hub: FakeHub, tmp_path: Path):
    outside = tmp_path / "outside.txt"
    outside.write_text(CANARY)
    for folder in (made.sae, made.report, made.report / "plots"):
        for name in (".env", "stray.bin", "core", ".cfg.json.swp", "notes.png.txt"):
            (folder / name).write_text(CANARY)
        (folder / "linked.png").symlink_to(outside)
    (made.report / "plots" / "no-picture.png").write_text(CANARY)
    (made.report / "plots" / "folder.png").mkdir()
    made.push()
    assert set(hub.repos[REPO].files) == ALL
    assert CANARY.encode() not in everything_seen(hub)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_link_in_place_of_the_sae_is_refused(made: Artefacts, hub: FakeHub, name: str):
    (made.sae / name).rename(made.sae / "elsewhere")
    (made.sae / name).symlink_to(made.sae / "elsewhere")
    with pytest.raises(CheckpointError, match="link"):
        made.push()
    assert not hub.requests


@pytest.mark.parametrize("field", ["selection", "report"])
def test_a_link_in_place_of_selection_or_report_is_refused(made: Artefacts, hub: FakeHub, field: str):
    path = made.selection if field == "selection" else made.report / "eval.json"
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))
    with pytest.raises(DataError, match="link"):
        made.push()
    assert not hub.requests


def test_corpus_text_is_published_only_when_asked_for(made: Artefacts, hub: FakeHub):
    made.push()
    assert CANARY.encode() not in everything_seen(hub)
    assert [
        latent["snippets"] for latent in json.loads(hub.repos[REPO].files[f"{POINT}/features.json"])["latents"]
    ] == [
        [],
        [],
        [],
    ]
    pushed = made.push(repo="you/with-text", include_contexts=True)
    assert CANARY.encode() in hub.repos["you/with-text"].files[f"{POINT}/features.json"]
    assert CANARY not in pushed.card


def test_paths_of_this_machine_are_cut(made: Artefacts, hub: FakeHub):
    cfg = json.loads((made.sae / "cfg.json").read_text())
    cfg["sae_forge"]["provenance"]["model"] = cfg["metadata"]["model_name"] = "/home/someone/secret/llama"
    files.publish_json(made.sae / "cfg.json", cfg)
    made.push()
    assert b"someone" not in everything_seen(hub)
    assert b"of a model that is not on the Hub" in hub.repos[REPO].files["README.md"]


def test_the_token_is_in_no_output(made: Artefacts, hub: FakeHub, caplog, capfd):
    hub.faults += [
        Fault("commit", 503),
        Fault("commit", 403, message=f"token {TOKEN} may not", headers={"X-Error-Message": f"{TOKEN} may not"}),
    ]
    with pytest.raises(RemoteError, match="403") as refused:  # a server that says the token back
        made.push()
    with caplog.at_level(logging.DEBUG):
        pushed = made.push()
    captured = capfd.readouterr()
    written = [str(refused.value), repr(refused.value), pushed.summary(), repr(pushed), json.dumps(pushed.to_json())]
    assert TOKEN not in "".join([*written, captured.out, captured.err, caplog.text])
    assert TOKEN.encode() not in everything_seen(hub)
    assert any(request.headers.get("authorization", request.headers.get("Authorization")) for request in hub.requests)


def test_a_token_of_any_shape_is_cut_from_what_the_server_says(made: Artefacts, hub: FakeHub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "odd.secret.value")
    hub.faults.append(Fault("look", 403, headers={"X-Error-Message": "no odd.secret.value, no hf_" + "x" * 30}))
    with pytest.raises(RemoteError, match=r"403: no \[secret\], no \[secret\]"):
        made.push()


@pytest.mark.parametrize("place", ["report", "message"])
def test_a_token_in_what_would_be_published_stops_the_push(made: Artefacts, hub: FakeHub, place: str):
    settings = {}
    if place == "report":
        record = json.loads((made.report / "eval.json").read_text())
        files.publish_json(made.report / "eval.json", {**record, "claims": [f"use {TOKEN}"]})
    else:
        settings["commit_message"] = f"with {TOKEN}"
    with pytest.raises(ConfigError, match="token") as refused:
        made.push(**settings)
    assert TOKEN not in str(refused.value)
    assert "commit" not in hub.steps()


# ---- dry run ------------------------------------------------------------------------------------


def test_a_dry_run_asks_nothing_of_anyone(made: Artefacts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a dry run opened a connection"))
    dry = made.push(dry_run=True)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not hub.requests
    assert (dry.commit, dry.dry_run) == (None, True)
    real = made.push()
    assert (dry.files, dry.card) == (real.files, real.card)  # what it showed is what was done
    assert dict(real.files) == {
        path: len(content) for path, content in hub.repos[REPO].files.items() if path != ".gitattributes"
    }
    assert set(dry.to_json()) == {"repo", "revision", "commit", "files", "dry_run"}
    assert dry.card in dry.summary()


# ---- the card -----------------------------------------------------------------------------------


def test_the_card_can_be_read_by_machine(made: Artefacts, hub: FakeHub):
    pushed = made.push(license="apache-2.0")
    card = ModelCard(pushed.card)
    assert (card.data.library_name, card.data.license) == ("saelens", "apache-2.0")
    assert {"saelens", "unlearning", "sae_forge"} <= set(card.data.tags)
    assert "base_model" not in card.data.to_dict()  # a built-in model is on no Hub
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert found["wizards|saga (forget)", "accuracy, scale -7, 3 latents"] == 0.2625
    assert found["stones (retain)", "accuracy, baseline"] == 0.99


def test_the_card_says_what_the_numbers_are(made: Artefacts, hub: FakeHub):
    card = made.push().card
    assert "| scale -7, 3 latents | 0.26 [0.21, 0.31] | 0.99 [0.94, 1.04] |" in card
    assert "| random isotropic for scale -7, 3 latents (3 seeds) | 0.90 [0.80, 1.00] | 0.99 [0.94, 1.04] |" in card
    assert "Guessing gives 0.25 in question accuracy" in card
    assert "- Scale -7 on 3 latents: forget questions fell.\n  - Side effects: none." in card
    assert "| 4 | 2.1 | 12.500% | 0.100% |" in card, "as the page has them"
    assert card.index("Scale -7 on 3 latents: forget questions fell.") < card.index("| scale -7, 3 latents |")
    assert "removing the hook restores everything" in card
    assert "import scale\n" in card and "edit = scale(latents, -7)" in card and ".indices[:3]" in card
    assert f'SAE.from_pretrained("{REPO}", "{POINT}")' in card
    told = json.loads((made.report / "eval.json").read_text())
    told["protocol"]["tokens"] = "all_but_first"
    files.publish_json(made.report / "eval.json", told)
    everywhere = made.push().card
    assert 'edit = replace(scale(latents, -7), tokens="all_but_first")' in everywhere
    assert "from dataclasses import replace\n" in everywhere and "from dataclasses" not in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables if "wizards" in line} == {3, 4}


@pytest.mark.parametrize(
    ("model", "weights", "base"),
    [
        ("google/gemma-2-2b", "", "google/gemma-2-2b"),
        ("gpt2", "0" * 40, "gpt2"),  # a commit of the Hub
        ("gpt2", "0" * 64, None),  # a folder of that name
        ("secret-client-model", "", None),
    ],
)
def test_a_model_of_the_hub_is_named_as_base_model_and_a_folder_nowhere(
    tmp_path: Path, hub: FakeHub, model: str, weights: str, base: str | None
):
    made = Artefacts(tmp_path)
    sae, provenance = load_sae(made.sae)
    save_sae(made.sae, sae, replace(provenance, model=model, weights=weights))
    card = publish(made.sae, REPO, PushConfig()).card
    assert ModelCard(card).data.to_dict().get("base_model") == base
    if base is None:
        pushed = hub.repos[REPO]
        said = [path for path, content in pushed.files.items() if model.encode() in content]
        assert not said and "of a model that is not on the Hub" in card


def test_a_licence_that_the_hub_does_not_know_is_refused_in_the_dry_run(made: Artefacts):
    with pytest.raises(
        ConfigError, match=r"'Apache License 2\.0' is none that the Hub knows \(did you mean apache-2\.0\?\)"
    ):
        made.push(license="Apache License 2.0", dry_run=True)


def test_an_sae_alone_can_be_pushed(made: Artefacts, hub: FakeHub):
    pushed = publish(made.sae, REPO, PushConfig())
    assert set(hub.repos[REPO].files) == ALL - {"eval.json", "plots/tradeoff.png", f"{POINT}/features.json"}
    assert "No effect of editing these latents was measured" in pushed.card
    assert ModelCard(pushed.card).data.eval_results is None


# ---- refusals -----------------------------------------------------------------------------------


def gated(message: str) -> dict[str, str]:
    return {"X-Error-Code": "GatedRepo", "X-Error-Message": message}


REFUSALS = [
    ("look", 401, {}, "does not accept this token"),
    ("look", 403, gated("ask"), "is gated"),
    ("commit", 403, gated("ask"), "is gated"),
    ("commit", 403, {}, "may not write.*write access"),
    ("preupload", 403, {}, "may not write"),
    ("create", 403, {}, "may not write"),
    ("create", 401, {}, "does not accept this token"),
    ("commit", 404, {"X-Error-Code": "RepoNotFound"}, "is not on http"),
    ("commit", 400, {}, "refused the push.*400"),
    ("commit", 413, {}, "413"),
    ("validate", 400, {}, "refused the push"),
    ("branch", 403, {}, "may not write"),
    ("look", 404, {}, "is not on http"),
]


@pytest.mark.parametrize(("step", "status", "headers", "said"), REFUSALS)
def test_a_refusal_is_one_line_with_a_way_out(made: Artefacts, hub: FakeHub, step, status, headers, said):
    hub.faults.append(Fault(step, status, times=99, headers=headers))
    with pytest.raises(RemoteError, match=said) as refused:
        made.push(branch="trial" if step == "branch" else None)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 300
    assert refused.value.exit_code == 5
    assert hub.steps().count(step) == 1 or step == "create", "a refusal is not asked again"
    assert all(len(repo.main) == 1 for repo in hub.repos.values())


def test_a_wrong_token_is_told_from_a_missing_repository(made: Artefacts, hub: FakeHub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWrongWrongWrongWrong")
    with pytest.raises(RemoteError, match="does not accept this token"):
        made.push()
    assert not hub.repos


def test_no_token_is_said_before_any_request(made: Artefacts, hub: FakeHub, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(RemoteError, match="no Hub token; set HF_TOKEN"):
        made.push()
    assert not hub.requests


def test_no_network_is_said_soon(made: Artefacts, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(wire, "FIRST_WAIT", 0.01)
    with pytest.raises(RemoteError, match=f"cannot reach {address}.*check the network"):
        made.push()


@pytest.mark.parametrize("name", ["plain", "a/b/c", "../up", "you/..", "you/", "you/two--dashes", "you/with space"])
def test_a_name_that_is_none_is_refused_at_once(made: Artefacts, hub: FakeHub, name: str):
    with pytest.raises(ConfigError, match="name/repository"):
        made.push(repo=name, dry_run=True)


def test_an_address_that_is_none_is_refused(made: Artefacts, hub: FakeHub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hub.example.org")
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        made.push()


# ---- damaged and foreign artefacts --------------------------------------------------------------


def flip_weights(made: Artefacts) -> None:
    path = made.sae / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_sae(made: Artefacts, path: Path, *keys: str) -> None:
    record = json.loads(path.read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = "0" * 64
    files.publish_json(path, record)


DAMAGE = {
    "flipped weights": (flip_weights, CheckpointError, "hash"),
    "no SAE": (lambda made: (made.sae / "cfg.json").unlink(), CheckpointError, "no SAE of a format that is read"),
    "selection of another SAE": (lambda made: other_sae(made, made.selection, "weights"), DataError, "other weights"),
    "report on another SAE": (
        lambda made: other_sae(made, made.report / "eval.json", "protocol", "sae_weights"),
        DataError,
        "other weights",
    ),
    "report of something else": (
        lambda made: files.publish_json(made.report / "eval.json", {"methods": [1]}),
        DataError,
        "card: methods: it should be a list of objects",
    ),
    "selection that is a list": (lambda made: made.selection.write_text("[]"), DataError, "it should be an object"),
    "selection that is no JSON": (
        lambda made: made.selection.write_bytes(b"\xff\x00"),
        DataError,
        "is not a selection",
    ),
    "no report": (lambda made: (made.report / "eval.json").unlink(), DataError, "No such file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_foreign_is_not_published(made: Artefacts, hub: FakeHub, name: str):
    damage, kind, said = DAMAGE[name]
    damage(made)
    with pytest.raises(ForgeError, match=said) as refused:
        made.push()
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)
    assert not hub.requests


def test_the_client_is_left_as_it_was(made: Artefacts, hub: FakeHub):
    from huggingface_hub.utils import get_session

    hub.faults.append(Fault("commit", 403))
    with pytest.raises(RemoteError):
        made.push()
    assert "send" not in vars(get_session())


@pytest.mark.slow
def test_nothing_of_the_token_is_on_any_stream_of_a_process(made: Artefacts, hub: FakeHub):
    """The same with HF_DEBUG, which makes the client log its requests."""
    script = (
        "import sys; from pathlib import Path; from sae_forge.config.push import PushConfig as Config;"
        "from sae_forge.pipeline.push import publish; "
        "print(publish(Path(sys.argv[1]), sys.argv[2], Config()).summary())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(made.sae), REPO],
        env={**os.environ, "HF_DEBUG": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
