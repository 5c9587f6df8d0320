"""Where each value of a JSON document stands, so that a fault can be told with its line.

Only faults pay for it: documents are read by `pycni.spec.jsontext`, and this looks at the text
again when something has to be told about it. The text must be known to be JSON.
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
    """Find the values of a JSON document; none in one of a size that nobody reads by lines."""
    if len(text) > _MAX_TEXT:
        return Positions({}, {})
    lines: dict[str, int] = {}
    repeated: dict[str, int] = {}
    signs = [(match.group(1), match.start(1)) for match in _SIGN.finditer(text)]
    offsets = [0, *(match.end() for match in re.finditer("\n", text))]
    line = 1
    path = ""
    # Of each container that is open: its path, and the index of the next item (None: an object).
    stack: list[tuple[str, int | None]] = []
    expects_key = False
    for index, (sign, start) in enumerate(signs):
        while line < len(offsets) and offsets[line] <= start:
            line += 1
        if sign in "}]":
            stack.pop()
            continue
        if sign == ",":
            container, item = stack[-1]
            if item is None:
                expects_key = True
            else:
                stack[-1] = (container, item + 1)
                path = f"{container}[{item + 1}]"
            continue
        if sign == ":":
            continue
        if expects_key:
            container = stack[-1][0]
            key = loads(sign, strict=False)
            path = f"{container}.{key}" if container else key
            if len(path) > _MAX_PATH:  # one such for each of a million keys is too much to keep
                path = container[:_MAX_PATH] + _CUT
            if path in lines and not path.endswith(_CUT):
                repeated[path] = line
            lines[path] = line
            expects_key = False
            continue
        lines.setdefault(path, line)
        if sign == "{":
            stack.append((path, None))
            expects_key = signs[index + 1][0] != "}"
        elif sign == "[":
            stack.append((path, 0))
            path = f"{path}[0]"
    return Positions(lines, repeated)


def parent(path: str) -> str:
    """The path of what a value is in: `plugins[0]` for `plugins[0].type`; "" at the top."""
    cut = max(path.rfind("."), path.rfind("["))
    return path[:cut] if cut > 0 else ""
