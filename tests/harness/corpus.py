"""The inputs that the surfaces are tried with: fuzz/corpus/<surface>.txt, an input a line.

A line is a name, a space and the input as Python writes bytes:

    bridge-port-without-settings b'\\x00\\x00\\x00\\x00\\x03...'
    - b'{"cniVersion": "1.0.0"}'

What a fuzzer collected for the code that it reaches has no name (`-`). A regression or a seed has
one, which says what it is, and stays: `make fuzz` drops and adds lines without one only. Lines are
sorted, names first, so that a change shows as the lines that came and went.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
NO_NAME = "-"


class Input(NamedTuple):
    """What a surface is given, and its name ("-": none)."""

    name: str
    data: bytes


def surfaces() -> list[str]:
    """The names of the surfaces that have a corpus."""
    return sorted(path.stem for path in CORPUS.glob("*.txt"))


def read(surface: str) -> list[Input]:
    """The inputs of a surface, in the order of its file."""
    found = []
    for line in (CORPUS / f"{surface}.txt").read_text("ascii").splitlines():
        name, _, literal = line.partition(" ")
        found.append(Input(name, ast.literal_eval(literal)))
    return found


def write(surface: str, inputs: list[Input]) -> None:
    """Write a surface's file: each input once, under its name if it has one."""
    named = {item.data: item.name for item in sorted(inputs, key=lambda item: item.name != NO_NAME)}
    ordered = sorted(named.items(), key=lambda item: (item[1] == NO_NAME, item[1], item[0]))
    lines = (f"{name} {data!r}\n" for data, name in ordered)
    (CORPUS / f"{surface}.txt").write_text("".join(lines), "ascii")


def unpack(surface: str, folder: Path) -> None:
    """Write each input to a file of its own, as libFuzzer takes them."""
    for number, item in enumerate(read(surface)):
        (folder / str(number)).write_bytes(item.data)


def pack(surface: str, folder: Path) -> None:
    """Take the inputs in a folder in the place of those that have no name."""
    named = [item for item in read(surface) if item.name != NO_NAME]
    write(surface, named + [Input(NO_NAME, path.read_bytes()) for path in folder.iterdir()])
