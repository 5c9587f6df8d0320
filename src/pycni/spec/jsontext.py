"""JSON read and written the way the other side of the protocol does (Go's `encoding/json`).

Reading is strict: UTF-8 without a byte order mark, no NaN or Infinity, no number beyond a float64,
nothing after the value. Of a key given twice the last counts. Whatever is read is valid Unicode.
Writing escapes `<`, `>`, `&`, U+2028 and U+2029, and prints numbers as Go prints a float64, so that
bytes compare equal with what the reference writes. The standard library's C scanner does the work;
it is imported directly because the `json` package brings `re` and `enum`, half of a plugin's start.
"""

from __future__ import annotations

from _json import encode_basestring, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

MAX_SIZE = 16 * 1024 * 1024  # bytes; a configuration with its prevResult is a few kilobytes
MAX_DEPTH = 200  # objects and lists in each other; well within the interpreter's stack
_INFINITY = float("inf")
_SAFE_DIGITS = 308  # an integer of so many is within a float64
_SPACE = " \t\n\r"
_EXACT = 1 << 53  # above it, an integer that went through a float64 is no longer itself


class JSONError(ValueError):
    """Text that is not JSON: what is wrong, and where, if one place is (counted from 1).

    problem: what, without the place; line: the place's, 0 if there is none.
    """

    def __init__(self, problem: str, text: str = "", position: int = 0) -> None:
        self.problem = problem
        self.line = 0
        if text:
            self.line = text.count("\n", 0, position) + 1
            column = position - text.rfind("\n", 0, position)
            problem = f"{problem} at line {self.line}, column {column}"
        super().__init__(problem)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (_INFINITY, -_INFINITY):
        shown = text if len(text) <= 20 else text[:17] + "..."
        raise ValueError(f"the number {shown} is out of range")
    return value


def _parse_int(text: str) -> int:
    if len(text) > _SAFE_DIGITS:
        _parse_float(text)
    return int(text)


class _Repeating(dict[str, "Any"]):
    """An object that was written with a key more than once; the last value counts."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _Repeating(found)
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name, _ in pairs:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    repeating.repeated = tuple(repeated)
    return repeating


def repeated_keys(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that an object from `loads` was written with more than once."""
    return getattr(document, "repeated", ())


class _Context:
    """What the C scanner asks of its caller (json.JSONDecoder's attributes)."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
    parse_float = staticmethod(_parse_float)
    parse_int = staticmethod(_parse_int)
    parse_constant = staticmethod(_refuse_constant)


_scan = make_scanner(_Context)  # type: ignore[arg-type]


def loads(data: bytes | str) -> Any:
    """Parse one JSON document. Raises JSONError."""
    if len(data) > MAX_SIZE:
        raise JSONError(f"{len(data)} bytes are more than the {MAX_SIZE} that are read")
    # Bytes that are not UTF-8 read as U+FFFD, as the reference's decoder does.
    text = data if isinstance(data, str) else str(data, "utf-8", "replace")
    start = _skip_space(text, 0)
    try:
        value, end = _scan(text, start)
    except (StopIteration, ValueError, RecursionError, SystemError):
        # SystemError: the scanner looks for json's own exception, which is not imported yet.
        raise _explain(text) from None
    end = _skip_space(text, end)
    if end != len(text):
        raise JSONError(f"unexpected {text[end]!r} after the end of the value", text, end)
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        value = _without_surrogates(value)
    return value


def lookup(document: Mapping[str, Any], key: str) -> Any:
    """The value of a key; without an exact match, of the last one in another letter case."""
    if key in document:
        return document[key]
    wanted = key.lower()
    found = None
    for name, value in document.items():
        if name.lower() == wanted:
            found = value
    return found


def has_key(document: Mapping[str, Any], key: str) -> bool:
    """Whether an object has a key that `lookup` finds, even with the value null."""
    wanted = key.lower()
    return key in document or any(name.lower() == wanted for name in document)


def _explain(text: str) -> JSONError:
    """The scanner's error in words. Only `json` has them, and only failures pay for its import."""
    import json

    if not text.strip(_SPACE):
        return JSONError("unexpected end of JSON input")
    try:
        json.loads(
            text, parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        comma = _trailing_comma(text, error.pos)
        if comma is not None:
            return JSONError("a comma with nothing behind it", text, comma)
        problem = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        return JSONError(problem, text, error.pos)
    except RecursionError:
        return JSONError("too deeply nested")
    except ValueError as error:
        return JSONError(str(error))
    raise AssertionError("json reads what its own scanner refused")


def _trailing_comma(text: str, position: int) -> int | None:
    """Where a comma before a closing bracket is, if a fault at a place is about one.

    Python's error points at the bracket, and since 3.13 at the comma.
    """
    if text[position : position + 1] in ("}", "]"):
        position = len(text[:position].rstrip(_SPACE)) - 1
    if text[position : position + 1] != ",":
        return None
    bracket = _skip_space(text, position + 1)
    return position if text[bracket : bracket + 1] in ("}", "]") else None


def _skip_space(text: str, position: int) -> int:
    if position == len(text) or text[position] not in _SPACE:
        return position
    return len(text) - len(text[position:].lstrip(_SPACE))


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise JSONError("too deeply nested")


def _without_surrogates(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair that an escape left alone."""
    if isinstance(value, str):
        return "".join("\ufffd" if _is_surrogate(character) else character for character in value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def dumps(value: Any, *, indent: int = 0, sort_keys: bool = False) -> str:
    """Write a document: compact, or indented by `indent` spaces a level; no newline at the end.

    Raises TypeError or ValueError for what has no JSON form.
    """
    text = _text(value, " " * indent, "\n", sort_keys)
    for character, escape in _ESCAPES:  # they stand in strings only
        if character in text:
            text = text.replace(character, escape)
    try:
        text.encode()
    except UnicodeEncodeError:  # os.environ's form of a byte that is not UTF-8
        return "".join("\\ufffd" if _is_surrogate(character) else character for character in text)
    return text


_ESCAPES = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)


def _text(value: Any, indent: str, newline: str, sort_keys: bool) -> str:
    if isinstance(value, str):
        return str(encode_basestring(value))
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    inner = newline + indent
    if isinstance(value, dict):
        opening, closing = "{", "}"
        colon = ": " if indent else ":"
        items = sorted(value.items()) if sort_keys else value.items()
        texts = [
            f"{encode_basestring(key)}{colon}{_text(item, indent, inner, sort_keys)}"
            for key, item in items
        ]
    elif isinstance(value, list | tuple):
        opening, closing = "[", "]"
        texts = [_text(item, indent, inner, sort_keys) for item in value]
    else:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    if not indent:
        return f"{opening}{','.join(texts)}{closing}"
    if not texts:
        return opening + closing
    return f"{opening}{inner}{(',' + inner).join(texts)}{newline}{closing}"


def _number(value: float) -> str:
    """A number as Go prints a float64: shortest form, plain between 1e-6 and 1e21."""
    if isinstance(value, int) and -_EXACT <= value <= _EXACT:
        return str(value)
    value = float(value)
    if not -_INFINITY < value < _INFINITY:
        raise ValueError(f"{value} has no JSON form")
    mantissa, _, exponent = repr(value).partition("e")
    if value != 0 and not 1e-6 <= abs(value) < 1e21:
        if not exponent:
            mantissa, _, exponent = f"{value:.16e}".partition("e")
        return f"{_trim(mantissa)}e{'-' if int(exponent) < 0 else '+'}{abs(int(exponent))}"
    if exponent:
        return _trim(_plain(mantissa, int(exponent)))
    return _trim(mantissa)


def _trim(decimal: str) -> str:
    return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal


def _plain(mantissa: str, exponent: int) -> str:
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = whole + fraction
    point = len(whole) + exponent
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    return f"{sign}{digits.ljust(point, '0')[:point]}.{digits[point:] or '0'}"
