"""What a stranger gets back from the Hub: the same SAE in SAELens and in sae_forge, from the very bytes pushed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakehub import TOKEN, FakeHub
from huggingface_hub import constants, snapshot_download
from test_push import POINT, REPO, Artefacts

from sae_forge.features.selection import Selection
from sae_forge.sae.store import load_sae
from sae_forge.sae.topk import TopKSAE


def uneven_sae() -> TopKSAE:
    """Weights with nothing symmetric about them, biases included."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"W_enc": (7, 23), "b_enc": (23,), "W_dec": (23, 7), "b_dec": (7,)}
    return TopKSAE.from_weights(**{name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, k=3)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Hub that every library of this process takes for the real one."""
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.mark.slow
def test_saelens_loads_what_was_pushed_and_agrees(hub: FakeHub, tmp_path: Path):
    sae_lens = pytest.importorskip("sae_lens")
    sae = uneven_sae()
    Artefacts(tmp_path, sae).push()
    theirs = sae_lens.SAE.from_pretrained(REPO, POINT)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        acts = theirs.encode(x)
        x_hat = theirs.decode(acts)
        ours = sae.encode(x)
        dense = torch.zeros(5, 23).scatter(1, ours.indices, ours.values)
        assert (dense > 0).any()
        torch.testing.assert_close(acts, dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x_hat, sae(x), atol=1e-5, rtol=1e-5)
    assert theirs.cfg.metadata.hook_name == POINT


def test_sae_forge_loads_what_was_pushed_bit_for_bit(hub: FakeHub, tmp_path: Path):
    sae = uneven_sae()
    made = Artefacts(tmp_path, sae)
    made.push(private=True)
    folder = Path(snapshot_download(REPO, token=TOKEN)) / POINT
    back, provenance = load_sae(folder)
    assert provenance == load_sae(made.sae)[1]
    for name, weight in sae.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    selection = Selection.load(folder / "features.json")
    assert selection == Selection.load(made.selection).without_snippets()


def test_the_snippets_on_the_card_run_as_far_as_a_test_can_go(hub: FakeHub, tmp_path: Path):
    card = Artefacts(tmp_path, uneven_sae()).push().card
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "card", "exec")
    loading, edit = snippets[0].split("lm = load_model")
    assert "import load_model" in loading and "with applied(lm, sae," in edit
    names: dict = {}
    exec(loading + "latents = Selection.load(folder / 'features.json').indices\n", names)
    assert names["provenance"].hook_point == POINT
    exec("edit = scale(latents, -7)", names)
    assert names["edit"].latents == (4, 11, 2)
    assert "edit):" in edit, "no sink was told apart when these latents were chosen"


@pytest.mark.parametrize(("spared", "shown"), [(True, "edit, selection.sink_norm):"), (False, "edit):")])
def test_the_edit_on_the_card_spares_sinks_where_the_one_that_was_measured_did(
    hub: FakeHub, tmp_path: Path, spared: bool, shown: str
):
    made = Artefacts(tmp_path, uneven_sae())
    replace(Selection.load(made.selection), sink_norm=9.0).save(made.selection)
    path = made.report / "eval.json"
    record = json.loads(path.read_text())
    record["protocol"]["sinks_spared"] = spared
    path.write_text(json.dumps(record))
    assert shown in made.push().card
