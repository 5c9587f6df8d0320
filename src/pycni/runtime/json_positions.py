"""Where each value of a JSON document stands, so that a fault is reported with its line.

Only faults pay for it: documents are read by `pycni.spec.jsontext`, and this looks at the text
again when something is to be reported of it. The text must be known to be JSON.
"""

from __future__ import annotations

import re
from json import loads

from pycni.spec.record import Record

_MAX_TEXT = 1 << 20
_MAX_PATH = 1000
_CUT = "…"

_SIGN = re.compile(r'[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^ \t\r\n{}\[\],:"]+)')


class Positions(Record):
    """The lines of a document's values, by the paths that `pycni.spec.schema` gives to faults.

    lines: the line of each path's key, or value in a list, counted from 1; repeated: the paths of
    keys that stand twice in one object, with the line of the later one.
    """

    lines: dict[str, int]
    repeated: dict[str, int]

    def line(self, path: str) -> int:
        """The line of a path, whatever the letter case of its keys; of what is around it if the
        path is that of something missing."""
        while path:
            found = self.lines.get(path) or self._folded().get(path.lower())
            if found:
                return found
            path = parent(path)
        return self.lines.get("", 1)

    def _folded(self) -> dict[str, int]:
        return {path.lower(): line for path, line in self.lines.items()}


def positions(text: str) -> Positions:
    """Find the values of a JSON document; none in one too large to be read by lines."""
    if len(text) > _MAX_TEXT:
        return Positions({}, {})
    return _Scanner(text).scan()


class _Scanner:
    """Goes through the signs of a JSON document once, and keeps the path where it is."""

    def __init__(self, text: str) -> None:
        self._signs = [(match.group(1), match.start(1)) for match in _SIGN.finditer(text)]
        self._offsets = [0, *(match.end() for match in re.finditer("\n", text))]
        self._found = Positions({}, {})
        self._line = 1
        self._path = ""
        # Of each container that is open: its path, and the index of the next item (None: an
        # object).
        self._stack: list[tuple[str, int | None]] = []
        self._expects_key = False

    def scan(self) -> Positions:
        for index, (sign, start) in enumerate(self._signs):
            while self._line < len(self._offsets) and self._offsets[self._line] <= start:
                self._line += 1
            if sign in "}]":
                self._stack.pop()
            elif sign == ",":
                self._next_item()
            elif sign != ":":
                if self._expects_key:
                    self._key(loads(sign, strict=False))
                else:
                    self._found.lines.setdefault(self._path, self._line)
                    if sign in "{[":
                        self._open(sign, is_empty=self._signs[index + 1][0] == "}")
        return self._found

    def _next_item(self) -> None:
        container, item = self._stack[-1]
        if item is None:
            self._expects_key = True
        else:
            self._stack[-1] = (container, item + 1)
            self._path = f"{container}[{item + 1}]"

    def _key(self, key: str) -> None:
        container = self._stack[-1][0]
        path = f"{container}.{key}" if container else key
        if len(path) > _MAX_PATH:  # one such for each of a million keys is too much to keep
            path = container[:_MAX_PATH] + _CUT
        if path in self._found.lines and not path.endswith(_CUT):
            self._found.repeated[path] = self._line
        self._found.lines[path] = self._line
        self._path = path
        self._expects_key = False

    def _open(self, sign: str, *, is_empty: bool) -> None:
        if sign == "{":
            self._stack.append((self._path, None))
            self._expects_key = not is_empty
        else:
            self._stack.append((self._path, 0))
            self._path = f"{self._path}[0]"


def parent(path: str) -> str:
    """The path of what a value is in: `plugins[0]` for `plugins[0].type`; "" at the top."""
    cut = max(path.rfind("."), path.rfind("["))
    return path[:cut] if cut > 0 else ""
