"""Draws docs/images/ask.svg from what a real build and two real questions printed.

python docs/images/make.py ASSISTANT BUILD_LOG
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from html import escape
from pathlib import Path

WIDTH, LINE, LEFT, TOP = 108, 19, 18, 30
COLOURS = {"$": "#7ee787", "[": "#79c0ff", " ": "#8b949e"}


def main(assistant: str, log: str) -> None:
    """Writes the picture beside this script."""
    lines = ["$ almanac build docs --output assistant", *Path(log).read_text().splitlines()[:15], ""]
    for question in ("What is a site?", "Who won the football world cup in 1954?"):
        command = [sys.executable, "-m", "almanac", "ask", assistant, question]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        lines += [f'$ almanac ask assistant "{question}"', *said.rstrip().splitlines(), ""]
    shown = [part for line in lines[:-1] for part in textwrap.wrap(line.replace(assistant, "assistant"), WIDTH) or [""]]
    height = TOP * 2 + LINE * len(shown)
    rows = [
        f'<text x="{LEFT}" y="{TOP + LINE * (index + 1)}" fill="{COLOURS.get(line[:1], "#e6edf3")}" '
        f'xml:space="preserve">{escape(line)}</text>'
        for index, line in enumerate(shown)
    ]
    picture = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" font-family="monospace" font-size="13.5">',
        f'<rect width="900" height="{height}" rx="10" fill="#0d1117"/>',
        *(f'<circle cx="{20 + 18 * dot}" cy="18" r="5.5" fill="#30363d"/>' for dot in range(3)),
        *rows,
        "</svg>",
    ]
    Path(__file__).with_name("ask.svg").write_text("\n".join(picture) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
