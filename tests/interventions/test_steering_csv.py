"""Steering CSVs: the papers' files are read as the edits they are, and written files say the same edit again."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_forge.errors import ConfigError, DataError
from sae_forge.interventions.apply import Intervention
from sae_forge.interventions.clamping import ClampFiring, SetTo
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.steering import AddConstant, SetProjection
from sae_forge.interventions.steering_csv import read_steering_csv, write_steering_csv
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.conditional_clamp import conditional_clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.refusal_clamp import refusal_clamp
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.edits.steer import steer

TEN = (11766, 9723, 4788, 1709, 9186, 3058, 13381, 14050, 11078, 16246)
REFUSAL = 15864
SAE_ID, RELEASE = "layer_7/width_16k/canonical", "gemma-scope-2b-pt-res-canonical"
HEADER = "latent_idx,hook_action,refuse_id,clamp_value,steering_coefficient,sae_id,sae_release,description"
LM_EVAL_HEADER = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id,description"
PUBLISHED = "\n".join(
    [HEADER] + [f'{latent},clamp_refusal,{REFUSAL},0.05,-500,{SAE_ID},{RELEASE},"terms, of {latent}"' for latent in TEN]
)


def everywhere(intervention: Intervention) -> Intervention:
    """The edit as the tools make it that these files come from: no token is spared."""
    return replace(intervention, tokens="attended")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "steer.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_refusal_file_is_refusal_clamping(tmp_path):
    table = read_steering_csv(written(tmp_path, PUBLISHED + "\n"), sae_id=SAE_ID, sae_release=RELEASE)
    assert table.intervention() == everywhere(refusal_clamp(TEN, REFUSAL))
    assert table.rows[3].description == "terms, of 1709"
    again = tmp_path / "again.csv"
    write_steering_csv(again, table)
    assert again.read_text(encoding="utf-8") == PUBLISHED + "\n"
    named = {latent: f"terms, of {latent}" for latent in TEN}
    write_steering_csv(again, refusal_clamp(TEN, REFUSAL), sae_id=SAE_ID, sae_release=RELEASE, descriptions=named)
    assert again.read_text(encoding="utf-8") == PUBLISHED + "\n"


def test_a_file_about_another_sae_is_refused(tmp_path):
    path = written(tmp_path, PUBLISHED)
    with pytest.raises(DataError, match=r"latent 11766 is one of the SAE .*layer_7.*, not of .*layer_3"):
        read_steering_csv(path, sae_id="layer_3/width_16k/canonical")
    with pytest.raises(DataError, match="not of 'gemma-scope-9b"):
        read_steering_csv(path, sae_release="gemma-scope-9b-pt-res")
    table = read_steering_csv(written(tmp_path, "latent_idx,steering_coefficient\n3,-20\n"), sae_id=SAE_ID)
    assert table.intervention() == everywhere(steer((3,), -20.0))


def test_older_files_with_fewer_columns_add_in_any_order(tmp_path):
    text = "latent_idx,description,sae_id,steering_coefficient\n7037, of rodents,layer_20,-20\n8235,b,layer_20,-1.5\n"
    table = read_steering_csv(written(tmp_path, text))
    assert table.intervention() == everywhere(steer((7037, 8235), (-20.0, -1.5)))
    assert table.rows[0].description == " of rodents"
    header = "latent_idx,hook_action,steering_coefficient,sae_id,sae_release,description"
    six = f"{header}\r\n4,clamp,-300,,,\r\n9,clamp,-300,,,\r\n"
    assert read_steering_csv(written(tmp_path, six)).intervention() == everywhere(clamp((4, 9), -300.0))


def test_an_lm_eval_file_is_read_as_lm_eval_applies_it(tmp_path):
    rows = (
        f"sparsify,{{}},EleutherAI/sae-pythia-70m-32k,layers.3,30,10.0,,,\nsae_lens,{{}},{RELEASE},,31,-2,,{SAE_ID},d\n"
    )
    for action, edit in (("add", AddConstant((10.0, -2.0))), ("clamp", SetProjection((10.0, -2.0)))):
        table = read_steering_csv(written(tmp_path, f"{LM_EVAL_HEADER}\n{rows.format(action, action)}"))
        assert (table.dialect, table.intervention().edit) == ("lm_eval", edit)
        assert (table.rows[0].loader, table.rows[0].hookpoint) == ("sparsify", "layers.3")
        assert (table.intervention().tokens, table.intervention("real").tokens) == ("attended", "real")
        write_steering_csv(tmp_path / "again.csv", table)
        assert read_steering_csv(tmp_path / "again.csv") == table


numbers = st.floats(allow_nan=False, allow_infinity=False)
latents = st.lists(st.integers(0, 2**31), min_size=1, max_size=6, unique=True).map(tuple)


@pytest.mark.slow
@given(latents, numbers, numbers, st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_number_for_number(tmp_path_factory, chosen, value, theta, each):
    path = tmp_path_factory.mktemp("csv") / "steer.csv"
    values = tuple(value + place for place in range(len(chosen))) if each else value
    refusal = max(chosen) + 1
    cases: list[tuple[Intervention, str]] = [
        (steer(chosen, values), "conditional"),
        (clamp(chosen, values), "conditional"),
        (conditional_clamp(chosen, values, theta), "conditional"),
        (refusal_clamp(chosen, refusal, value, theta), "conditional"),
        (steer(chosen, values), "lm_eval"),
        (Intervention("set_projection", chosen, SetProjection(values)), "lm_eval"),
    ]
    for intervention, dialect in cases:
        write_steering_csv(path, intervention, dialect=dialect, sae_id='a "b", c', sae_release="é\nö")  # pyright: ignore
        found = read_steering_csv(path, sae_id='a "b", c', sae_release="é\nö").intervention("real")
        for part in ("targets", "writes", "gate", "tokens", "keep_error"):
            assert getattr(found, part) == getattr(intervention, part)
        assert _numbers(found, len(chosen)) == _numbers(intervention, len(chosen))


def _numbers(intervention: Intervention, count: int) -> tuple:
    match intervention.edit:
        case ClampFiring(value, theta):
            numbers = (value, theta)
        case SetTo(value) | AddConstant(value) | SetProjection(value):
            numbers = (value, 0.0)
        case _:
            raise AssertionError
    value, theta = numbers
    return (value if isinstance(value, tuple) else (value,) * count), theta


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1: the header"),
        ("index,value\n3,4\n", "1: the header 'index,value' is not one"),
        (HEADER + "\n", "a header and no row"),
        (HEADER + "\n3,clamp,,,-5,,,\nx,clamp,,,-5,,,\n", "3: latent_idx 'x' is not a finite number"),
        (HEADER + "\n3.5,clamp,,,-5,,,\n", "2: latent_idx '3.5' is not a latent"),
        (HEADER + "\n-3,clamp,,,-5,,,\n", "2: latent_idx '-3' is not a latent"),
        (HEADER + "\n3,clamp,,,nan,,,\n", "2: steering_coefficient 'nan' is not a finite number"),
        (HEADER + "\n3,clamp,,,,,,\n", "2: steering_coefficient '' is not a finite number"),
        (HEADER + "\n3,melt,,,-5,,,\n", "2: action 'melt' is unknown; .* clamp_refusal"),
        (HEADER + "\n3,clamp_refusal,,0.05,-5,,,\n", "2: clamp_refusal needs the latent"),
        (HEADER + "\n3,clamp_refusal,9,much,-5,,,\n", "2: clamp_value 'much'"),
        (HEADER + "\n3,clamp,,,-5,,,,9\n", "2: it has more cells than the header"),
        (HEADER + '\n3,clamp,,,-5,,,"open\n', "2: unexpected end of data"),
        (LM_EVAL_HEADER + "\nsparsify,clamp_cond,a,layers.3,30,1,,,\n", "2: action 'clamp_cond' is unknown"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, text, says):
    with pytest.raises(DataError, match=says):
        read_steering_csv(written(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_steering_csv(tmp_path / "none.csv")
    (tmp_path / "steer.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_steering_csv(tmp_path / "steer.csv")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("3,clamp,,,-5,,,\n3,clamp,,,-5,,,\n", "latent 3 has two rows"),
        ("3,clamp,,,-5,,,\n4,add,,,-5,,,\n", "action 'clamp' and 'add'"),
        ("3,clamp_cond,,0.1,-5,,,\n4,clamp_cond,,0.2,-5,,,\n", "theta 0.1 and 0.2"),
        ("3,clamp_refusal,8,0.1,-5,,,\n4,clamp_refusal,9,0.1,-5,,,\n", "refusal 8 and 9"),
        ("3,clamp_refusal,8,0.1,-5,,,\n4,clamp_refusal,8,0.1,-6,,,\n", "coefficient -5.0 and -6.0"),
    ],
)
def test_rows_that_make_no_one_edit_are_refused(tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        read_steering_csv(written(tmp_path, f"{HEADER}\n{rows}")).intervention()


def test_an_edit_that_a_dialect_cannot_say_is_refused(tmp_path):
    path = tmp_path / "steer.csv"
    for intervention in (dsg(TEN), scale(TEN), replace(clamp(TEN), gate=AnyFires())):
        with pytest.raises(ConfigError, match=f"cannot say {intervention.name}"):
            write_steering_csv(path, intervention)
    with pytest.raises(ConfigError, match="lm_eval kind cannot say clamp"):
        write_steering_csv(path, clamp(TEN), dialect="lm_eval")
    assert not path.exists()
