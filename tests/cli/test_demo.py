"""The demo under Textual's pilot: keys send, switch, stop and change; both answers stand side by side."""

import asyncio
import gc
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from textual.widgets import Input, Static, Switch

from cli.demo_app import PAUSE, Demo, _a_core_free
from sae_forge.errors import CheckpointError
from sae_forge.study.settings import demo_config


@pytest.fixture
def config(plugged_run):
    return demo_config()(model=str(plugged_run.model), run_dir=plugged_run.folder, max_new_tokens=4)


def shown(app, column):
    """The text of a pane."""
    return "\n".join(str(one.render()) for one in app.query(f"{column} Static").results(Static))


async def until(pilot, so, seconds=30.0):
    """Wait for the screen to be so."""
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come"
        await pilot.pause(0.05)


async def loaded(pilot, app):
    await until(pilot, lambda: app.conversation is not None)


def with_app(config, what):
    """Run ``what(app, pilot)`` in the app."""

    async def run():
        app = Demo(config)
        async with app.run_test(size=(120, 36)) as pilot:
            await what(app, pilot)
        return app

    return asyncio.run(run())


@pytest.mark.slow
def test_both_answers_stand_side_by_side_and_the_edit_is_switched_by_key_and_command(config):
    async def what(app, pilot):
        await loaded(pilot, app)
        await pilot.press(*"The owl", "enter")
        await until(pilot, lambda: app.said and not app.writing)
        assert set(app.said[0]["texts"]) == {"baseline", "scale -3 on 24 latents"}
        assert app.said[0]["texts"]["baseline"].strip() in shown(app, "#plain")
        assert "> The owl" in shown(app, "#edited") and app.query_one("#line", Input).value == ""
        await pilot.press("ctrl+a")
        assert not app.conversation.edited and not app.query_one("#on", Switch).value
        await pilot.press(*"Granite", "ctrl+s")
        await until(pilot, lambda: len(app.said) == 2 and not app.writing)
        assert set(app.said[1]["texts"]) == {"baseline"}
        await pilot.click("#on")
        assert app.conversation.edited
        await pilot.press("tab")

        app.query_one("#line", Input).value = "/quit"
        await pilot.press("ctrl+s")
        assert app._exit, "as in generate --interactive"

    app = with_app(config, what)
    assert app.return_value is None


def test_scale_latents_and_method_change_and_what_cannot_be_is_said(config):
    async def what(app, pilot):
        await loaded(pilot, app)
        assert gc.get_freeze_count() > 100_000, "a full collection would hold the screen up"
        assert list(app.conversation.edits) == ["scale -5 on 7 latents"]
        assert [app.query_one(box, Input).value for box in ("#scale", "#number")] == ["-5", "7"]
        for line in ("/scale -9", "/latents 3", "/nope"):
            app.query_one("#line", Input).value = line
            await pilot.press("ctrl+s")
        assert list(app.conversation.edits) == ["scale -9 on 3 latents"]
        assert "/nope is no command" in str(app.query_one("#said", Static).render())
        scale = app.query_one("#scale", Input)
        scale.focus()
        scale.value = "-2"
        await pilot.press("enter")
        assert list(app.conversation.edits) == ["scale -2 on 3 latents"]
        app.query_one("#method").value = "zero"
        await pilot.pause()
        assert next(iter(app.conversation.edits)).startswith("Zero ablation")

    with_app(replace(config, num_features=(7,), ablation_scale=(-5.0,)), what)
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
def test_a_key_is_answered_while_the_model_works_on_a_token(config):
    go = threading.Event()

    async def what(app, pilot):
        await loaded(pilot, app)
        answer = app.conversation.answer

        def slow(line):
            for told in answer(line):
                yield told
                assert go.wait(60), "the screen waited for the model"

        app.conversation.answer = slow
        await pilot.press(*"The wizard", "enter")
        await pilot.press("x", "y")
        assert app.writing and app.query_one("#line", Input).value == "xy"
        await pilot.press("enter")
        assert "Escape stops it" in str(app.query_one("#said", Static).render()), "one answer at a time"
        await pilot.press("escape")
        go.set()
        await until(pilot, lambda: not app.writing)
        assert app.said[0]["texts"] == {}, "it was stopped on the prompt"

    with_app(config, what)


def test_a_run_that_cannot_be_had_ends_the_screen_with_its_line(config, tmp_path):
    missing = demo_config()(**{**vars(config), "run_dir": tmp_path / "none"})
    with pytest.raises(CheckpointError, match="make one with"):
        asyncio.run(_outcome(missing))


async def _outcome(config):
    app = Demo(config)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.return_value is not None or app._exit)
    if app.return_value is not None:
        raise app.return_value


def test_the_model_leaves_the_screen_a_core_while_it_writes(monkeypatch):
    before = torch.get_num_threads()
    try:
        for cores, threads in ((2, 1), (1, 1), (8, 2)):
            torch.set_num_threads(2)
            monkeypatch.setattr("cli.demo_app.os.cpu_count", lambda cores=cores: cores)
            with _a_core_free():
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_token_is_begun_while_what_was_written_is_on_its_way_to_the_screen(config):
    app, begun = Demo(config), []

    def answer(line):
        for number in range(2):
            begun.append(app._painted.is_set())
            yield "baseline", number

    app.conversation = SimpleNamespace(answer=answer)
    app._painted.clear()
    threading.Timer(PAUSE / 2, app._painted.set).start()
    app._write("The owl")()
    assert begun == [False, True]
