"""What a store says of a failure, repeated without what must not be read over a shoulder."""

import pytest

from sae_forge.store.secrets import scrubbed


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("GET https://a.b/c?X-Amz-Signature=abc&u=d failed", "GET https://a.b/c?… failed"),
        ("no route to s3://me:word@host/x", "no route to s3://…@host/x"),
        ("header Authorization: Bearer abc.def was refused", "header Authorization: [secret] was refused"),
        ("key AKIAABCDEFGHIJKLMNOP is unknown", "key [secret] is unknown"),
        ("two\n lines\tand  more", "two lines and more"),
    ],
)
def test_what_is_known_to_be_secret_by_its_form_is_taken_out(said: str, shown: str):
    assert scrubbed(said) == shown


def test_values_of_variables_that_hold_secrets_are_taken_out_however_spelled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_ACCESS_KEY", "p/q+rstuv")
    monkeypatch.setenv("MY_PASS", "short")
    monkeypatch.setenv("MY_COLOUR", "vermilion")
    assert scrubbed("p/q+rstuv and p%2Fq%2Brstuv, P/Q%2BRSTUV; short, vermilion") == (
        "[secret] and [secret], [secret]; short, vermilion"
    )
    assert scrubbed("the token abcdef was refused", "abcdef") == "the token [secret] was refused"


def test_no_more_than_a_line_is_repeated():
    assert len(scrubbed("word " * 200)) <= 160
