"""SAEs written in other tools' formats: read back they are the same, and what a format cannot say leaves nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.pipeline.convert import convert
from sae_forge.sae.architectures.architecture import Built
from sae_forge.sae.formats import table
from sae_forge.sae.formats.format import Format, Hints
from sae_forge.sae.formats.written import given, write
from sae_forge.sae.named import read_dictionary
from tests.sae.test_formats import X, dense, saelens_folder, sparsify_folder

KINDS: dict[str, Callable[[Path], Path]] = {
    **{kind: lambda root, kind=kind: saelens_folder(root, kind) for kind in ("topk", "abstopk", "jumprelu", "gated")},
    "relu": lambda root: saelens_folder(root, "standard"),
    "groupmax": lambda root: sparsify_folder(root.with_name("layers.3"), activation="groupmax"),
}
"""Of each architecture that is read one SAE, of blocks.3.hook_resid_post."""
MODULES = {"resid_post": "layers.3", "mlp_out": "layers.3.mlp", "attn_out": "layers.3.self_attn"}


def made(kind: str, tmp_path: Path) -> Built:
    return read_dictionary(str(KINDS[kind](tmp_path / kind))).sae  # pyright: ignore[reportReturnType]


def same(sae: Any, other: Any) -> None:
    """The bounds that a format is held to: acts, firings, output."""
    acts, output = dense(sae, X), sae.decode(sae.encode(X))
    again = dense(other, X)
    assert float((again - acts).abs().max()) <= 5e-6 * float(acts.abs().max())
    assert torch.equal(again != 0, acts != 0)
    assert float((other.decode(other.encode(X)) - output).abs().max()) <= 1e-5 * float(output.abs().max())


SAID_AS = {"abstopk": "topk", "gated": "jumprelu", "relu": "standard"}
PAIRS = [
    (entry, kind)
    for entry in table.WRITTEN
    for kind in KINDS
    if entry.writer and SAID_AS.get(kind, kind) in entry.writer.architectures
]


@pytest.fixture
def pickles_read_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the process of their own that pickles of others are read in, which takes seconds to start."""

    @contextmanager
    def here(path: Path, *, allowed: bool) -> Iterator[Path]:
        save_file(torch.load(path, weights_only=True), tmp_path / "tensors.safetensors")
        yield tmp_path / "tensors.safetensors"

    monkeypatch.setattr("sae_forge.sae.formats.stored.as_safetensors", here)


@pytest.mark.parametrize(("entry", "kind"), PAIRS, ids=lambda each: getattr(each, "name", each))
@pytest.mark.usefixtures("pickles_read_here")
def test_what_is_written_is_read_back_as_it_was(entry: Format, kind: str, tmp_path: Path) -> None:
    sae = made(kind, tmp_path)
    point = HookPoint(3)
    told = given(sae, point, model="google/gemma-2-2b-it", module=lambda: MODULES[point.site])
    folder = write(tmp_path / "out", entry, told)
    found = read_dictionary(str(folder), allow_pickle=True)
    assert found.point == point
    assert found.provenance.model in ("google/gemma-2-2b-it", "")
    same(sae, found.sae)


SITES = [(entry, site) for entry in table.WRITTEN if entry.writer for site in entry.writer.sites]


@pytest.mark.parametrize(("entry", "site"), SITES, ids=lambda each: getattr(each, "name", each))
def test_every_site_a_format_has_comes_back(entry: Format, site: Site, tmp_path: Path) -> None:
    kind = "topk" if entry.writer and "topk" in entry.writer.architectures else "jumprelu"
    told = given(
        made(kind, tmp_path), HookPoint(3, site), model="google/gemma-2-9b", module=lambda: MODULES.get(site, "")
    )
    found = table.on_disk(write(tmp_path / "out", entry, told))
    assert found is not None
    assert found.format.describe(found, Hints()).point == HookPoint(3, site)


@pytest.mark.parametrize(
    ("kind", "to", "asked", "said"),
    [
        ("topk", "gemma-scope", {}, "Gemma Scope has no topk SAEs, only jumprelu, standard; .* have them: SAELens"),
        ("groupmax", "saelens", {}, "SAELens has no groupmax SAEs.*formats that have them: sparsify"),
        ("jumprelu", "Sparsify", {}, "sparsify has no jumprelu SAEs"),
        ("jumprelu", "gemma_scope_3", {}, "no format that is written; choose one of saelens, gemma-scope, "),
        ("jumprelu", "saelens", {"layer": 4}, "reads blocks.3.hook_resid_post, not blocks.4"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_say_is_refused_by_name_and_nothing_is_written(kind, to, asked, said, tmp_path):
    source, out = KINDS[kind](tmp_path / "sae"), tmp_path / "out"
    with pytest.raises(ConfigError, match=said):
        convert(str(source), to=to, out=out, **asked)
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "site", "to", "said"),
    [
        ("tiny-llama", "z", "saelens", r"SAELens has no name for blocks\.3\.attn\.hook_z, only for resid_pre"),
        ("tiny-llama", "mlp_out", "gemma-scope", "name of a release, and those are of Gemma 2; the model is tiny"),
        ("tiny-gemma2", "mlp_out", "sparsify", "no module of tiny-gemma2 gives .* as it is normed"),
        ("tiny-gemma2", "attn_out", "dictionary_learning", "no module of tiny-gemma2 gives"),
        ("", "mlp_out", "sparsify", "no module is known whose output"),
    ],
)  # fmt: skip
def test_a_site_that_cannot_be_said_is_refused(model, site, to, said, tmp_path):
    hook = str(HookPoint(3, site))
    kind = "topk" if to == "sparsify" else "jumprelu"
    folder = saelens_folder(tmp_path / "sae", kind, metadata={"hook_name": "" if site == "z" else hook})
    asked = {"layer": 3, "site": "z"} if site == "z" else {}
    with pytest.raises(ConfigError, match=said):
        convert(str(folder), to=to, out=tmp_path / "out", model=model or None, **asked)
    assert not (tmp_path / "out").exists()


def test_a_conversion_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    source, out = str(KINDS["topk"](tmp_path / "sae")), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(Exception, match="No space left"):
        patched.setattr("sae_forge.store.files.sealed_json", full)
        convert(source, to="saelens", out=out)
    assert not out.exists()
    folder = convert(source, to="sparsify", out=out, model="tiny-llama").outputs["sae"]
    assert folder == out / "layers.3"
    with pytest.raises(ConfigError, match=r"layers\.3 is there already; name another --out"):
        convert(source, to="sparsify", out=out, model="tiny-llama")
    assert sorted(path.name for path in out.rglob("*")) == ["cfg.json", "layers.3", "sae.safetensors"]


def test_an_sae_of_centred_activations_is_converted_for_the_model_it_is_used_on(tmp_path):
    asks = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = str(saelens_folder(tmp_path / "sae", "jumprelu", metadata=asks))
    with pytest.raises(ConfigError, match="less their mean, as some models give; name --model"):
        convert(folder, to="gemma-scope-2", out=tmp_path / "out")
    convert(folder, to="gemma-scope-2", out=tmp_path / "out", model="tiny-llama")
    same(read_dictionary(folder).sae, read_dictionary(str(tmp_path / "out")).sae)


@pytest.mark.slow
def test_a_pickle_is_converted_only_where_it_may_be_read(tmp_path):
    folder = convert(str(KINDS["topk"](tmp_path / "sae")), to="dictionary_learning", out=tmp_path / "ae").outputs["sae"]
    with pytest.raises(CheckpointError, match="--allow_pickle"):
        convert(str(folder), to="saelens", out=tmp_path / "back")
    convert(str(folder), to="saelens", out=tmp_path / "back", allow_pickle=True)
    same(read_dictionary(str(KINDS["topk"](tmp_path / "sae"))).sae, read_dictionary(str(tmp_path / "back")).sae)


def test_a_site_that_no_release_names_gives_way_to_the_one_asked_for(tmp_path):
    told = given(made("jumprelu", tmp_path), HookPoint(3), model="mine")
    source = str(write(tmp_path / "out", table.BY_NAME["Gemma Scope"], told))
    assert read_dictionary(source).point == HookPoint(3)
    assert read_dictionary(source, site="mlp_out").point == HookPoint(3, "mlp_out")
    assert read_dictionary(source, asked=HookPoint(3, "z")).point == HookPoint(3, "z")
    with pytest.raises(ConfigError, match="give --layer 3"):
        read_dictionary(source, asked=HookPoint(2, "z"))
    told = given(made("jumprelu", tmp_path), HookPoint(3), model="google/gemma-2-2b")
    source = str(write(tmp_path / "out", table.BY_NAME["Gemma Scope"], told))
    with pytest.raises(ConfigError, match="--site resid_post"):
        read_dictionary(source, site="mlp_out")
