"""How soon ``demo`` shows a key while a model writes, in a real terminal: tmux in control mode, no pilot.

A key is sent to the pane as a keyboard would send it, and its time ends when the character comes out of the program on
its way to the screen. Keys are letters that no model here writes, each once, so that none is taken for another. Counted
are those after which the answer still went on; beside them stand keys pressed while nothing is written.

    python tests/benchmarks/demo_keys.py --json keys.json -- --model tiny-llama
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from codecs import getincrementaldecoder
from pathlib import Path
from queue import Empty, Queue

import numpy as np

ALPHABETS = ((0x391, 0x3A1), (0x3B1, 0x3C9), (0x410, 0x44F), (0x531, 0x556))
KEYS = [chr(code) for first, last in ALPHABETS for code in range(first, last + 1)]
PACE = 0.06
"""Seconds between keys: those of a fast typist."""
SHARES = {"median": 50, "p95": 95, "most": 100}
PATIENCE = 8.0
"""Seconds in which the last key must be shown."""
LIMIT_MS = 100
CONTROL = re.compile(r"\\033\[[0-9;?]*[A-Za-z]|\\033.|\\0\d\d")


class Terminal:
    """A tmux server of its own with one pane, and what comes out of it with the time."""

    def __init__(self, command: str, size: tuple[int, int]) -> None:
        self.base = ["tmux", "-L", f"demo-keys-{os.getpid()}", "-f", "/dev/null"]
        width, height = map(str, size)
        subprocess.run([*self.base, "new-session", "-d", "-x", width, "-y", height, command], check=True)
        self._control = subprocess.Popen([*self.base, "-C", "attach"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.out: Queue[tuple[float, str]] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._control.stdout is not None
        decoder = getincrementaldecoder("utf-8")("replace")  # a letter may be cut in two
        for line in self._control.stdout:
            if line.startswith(b"%output"):
                text = decoder.decode(line.rstrip(b"\n").split(b" ", 2)[2])
                self.out.put((time.perf_counter(), CONTROL.sub("", text)))

    def send(self, *keys: str) -> float:
        """Send keys; the time just before."""
        assert self._control.stdin is not None
        now = time.perf_counter()
        self._control.stdin.write(f"send-keys {' '.join(map(shlex.quote, keys))}\n".encode())
        self._control.stdin.flush()
        return now

    def shown(self) -> str:
        """All that is on the screen."""
        return subprocess.run([*self.base, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def until(self, words: str, seconds: float) -> None:
        """Wait for words on the screen."""
        end = time.monotonic() + seconds
        while words not in (shown := self.shown()):
            if time.monotonic() > end:
                raise SystemExit(f"{words!r} did not come in {seconds:.0f} s:\n{shown}")
            time.sleep(0.3)

    def drain(self, seconds: float) -> list[tuple[float, str]]:
        """What comes out in the next seconds."""
        end, came = time.perf_counter() + seconds, []
        while (left := end - time.perf_counter()) > 0:
            try:
                came.append(self.out.get(timeout=left))
            except Empty:
                break
        return came

    def close(self) -> None:
        subprocess.run([*self.base, "kill-server"], check=False)
        self._control.wait(5)


def measured(terminal: Terminal, prompt: str | None, keys: list[str]) -> list[float]:
    """Milliseconds from key to paint, of the keys that were pressed while an answer to the prompt was written.

    Without a prompt nothing is written, and every key counts.
    """
    terminal.send("C-u")
    terminal.drain(0.5)  # Textual deletes what is typed in the same read as this key, since it does so later
    if prompt is not None:
        terminal.send("-l", prompt)
        terminal.drain(0.5)
        terminal.send("Enter")
        terminal.until(f"> {prompt}", 30)
    came, sent = [], {}
    for key in keys:
        sent[key] = terminal.send("-l", key)
        came += terminal.drain(PACE)
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end and not all(any(key in text for _, text in came) for key in keys):
        came += terminal.drain(0.5)
    terminal.send("Escape")
    came += terminal.drain(0.5)
    written = [moment for moment, text in came if re.search("[a-z]{2}", text)]
    painted = {
        key: next((moment for moment, text in came if key in text and moment >= begun), None)
        for key, begun in sent.items()
    }
    if lost := [key for key, moment in painted.items() if moment is None]:
        raise SystemExit(f"{len(lost)} keys were never shown")
    last = max(written, default=0.0) if prompt is not None else time.perf_counter()
    return [1000 * (moment - sent[key]) for key, moment in painted.items() if moment is not None and sent[key] < last]


def main() -> None:
    """Measure, print, and hold the 95th percentile against the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prompt", default="The young wizard")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--keys", type=int, default=15, help="a round")
    parser.add_argument("--wait", type=float, default=300, help="seconds until the model must be there")
    parser.add_argument("demo", nargs=argparse.REMAINDER, help="-- and flags of demo")
    args = parser.parse_args()
    flags = [flag for flag in args.demo if flag != "--"]
    terminal = Terminal(shlex.join([sys.executable, "-m", "sae_forge", "demo", *flags]), (120, 36))
    times: list[float] = []
    still: list[float] = []
    try:
        terminal.until("latents firing", args.wait)
        terminal.until(" · ", args.wait)
        terminal.drain(2.0)  # until the line to write on has the focus
        for number in range(args.rounds):
            chosen = [KEYS[(number * args.keys + place) % len(KEYS)] for place in range(args.keys)]
            still += measured(terminal, None, chosen)
            times += measured(terminal, args.prompt, chosen)
        terminal.send("C-q")
    finally:
        terminal.close()
    if not times:
        raise SystemExit("no key was pressed while an answer was written: give --max_new_tokens")
    load, told = os.getloadavg()[0], {}
    for when, some in (("while it writes", times), ("while it does not", still)):
        told[when] = {name: float(np.percentile(some, share)) for name, share in SHARES.items()}
        numbers = ", ".join(f"{name} {value:.0f} ms" for name, value in told[when].items())
        print(f"{len(some)} keys {when}: {numbers}")
    met = "met" if told["while it writes"]["p95"] <= LIMIT_MS else "missed"
    print(f"{met}: {LIMIT_MS} ms at the 95th percentile; load {load:.1f} on {os.cpu_count()} cores")
    if args.json:
        record = {"flags": flags, "load": load, **told, "writing_ms": times, "still_ms": still}
        args.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
