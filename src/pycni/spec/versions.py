"""The versions of the specification: which there are, how they compare, the VERSION answer."""

from __future__ import annotations

from pycni.spec.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, CNIError
from pycni.spec.jsontext import lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = "1.1.0"
DEFAULT = "0.1.0"  # of a configuration that names none

# The first version that knows each operation.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def since(version: str) -> tuple[str, ...]:
    """The known versions from `version` on."""
    return ALL[ALL.index(version) :]


def parse(version: str) -> tuple[int, int, int]:
    """A version as three numbers; missing ones are 0 and "" is 0.1.0. Raises ValueError."""
    parts = (version or DEFAULT).split(".")
    if len(parts) > 3:
        raise ValueError(f"invalid version {quote(version)}: too many parts")
    numbers = []
    for name, part in zip(("major", "minor", "micro"), parts, strict=False):
        digits = part[1:] if part[:1] in ("+", "-") else part
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise ValueError(f"failed to convert {name} version part {quote(part)}: not a number")
        numbers.append(int(part))
    return (*numbers, 0, 0, 0)[:3]  # type: ignore[return-value]


def at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or newer. Raises ValueError for what is not a version."""
    return parse(version) >= parse(minimum)


def version_reply(supported: tuple[str, ...], asked: str = CURRENT) -> dict[str, Any]:
    """What VERSION answers; asked: the version that the question is in."""
    return {"cniVersion": asked, "supportedVersions": list(supported)}


def parse_version_reply(document: Any) -> tuple[str, ...]:
    """The supported versions in a plugin's VERSION answer. Raises CNIError."""
    if not isinstance(document, dict):
        raise CNIError(DECODING_FAILURE, "decoding version info: not a JSON object")
    version = lookup(document, "cniVersion")
    supported = lookup(document, "supportedVersions")
    if not version:
        raise CNIError(DECODING_FAILURE, "decoding version info: missing field cniVersion")
    if not isinstance(version, str):
        raise CNIError(DECODING_FAILURE, "decoding version info: cniVersion is not a string")
    if not supported:
        if version == "0.2.0":
            return ("0.1.0", "0.2.0")
        raise CNIError(DECODING_FAILURE, "decoding version info: missing field supportedVersions")
    if not isinstance(supported, list) or not all(isinstance(item, str) for item in supported):
        raise CNIError(
            DECODING_FAILURE,
            "decoding version info: supportedVersions is not a list of strings",
        )
    return tuple(supported)


def require(version: str, supported: tuple[str, ...]) -> None:
    """Refuse a configuration whose version the plugin does not speak (code 1)."""
    if version not in supported:
        raise CNIError(
            INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f"config is {quote(version)}, plugin supports [{' '.join(map(quote, supported))}]",
        )


def quote(text: str) -> str:
    """Text in double quotes, as the reference quotes values in its messages."""
    return '"' + "".join(map(_printable, text)) + '"'


def _printable(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
        code -= 0xDC00
        return f"\\x{code:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
