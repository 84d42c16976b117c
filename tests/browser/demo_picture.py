"""The picture of ``demo`` in docs/page.md, of the run of tiny-llama: python tests/browser/demo_picture.py FILE.svg."""

import asyncio
import re
import sys
from pathlib import Path

from cli.demo_app import Demo
from sae_forge.study.settings import demo_config

PROMPT = "The young wizard"
FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""Textual's picture asks a network for its font; any other of one width does."""


async def picture(tokens: int = 40) -> str:
    """The screen after one answer, as SVG that fetches nothing.

    Raises:
        ForgeError: the demo could not begin.
    """
    app = Demo(demo_config()(model="tiny-llama", max_new_tokens=tokens))
    async with app.run_test(size=(120, 32)) as pilot:
        while app.conversation is None:
            await pilot.pause(0.1)
            if app.return_value is not None:
                raise app.return_value
        await pilot.press(*PROMPT, "enter")
        while app.writing:
            await pilot.pause(0.1)
        await pilot.pause(0.3)  # until it is painted
        return FONT.sub("", app.export_screenshot())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(picture()))
