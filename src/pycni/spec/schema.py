"""Typed configuration, declared once: decoding, every fault by name, and a JSON Schema from it.

    class TrunkRange(Config):
        low: int | None = field("minID", Integer(1, 4094), doc="first VLAN of the range")

`Config.decode` turns a JSON object into such a class. As for the reference, keys match whatever
their letter case (an exact match wins, else the last), null counts as absent, and unknown keys are
left alone. `Config.errors` finds everything that is wrong at once, for tools that check
configurations.
"""

from __future__ import annotations

from pycni.spec import ip
from pycni.spec.errors import CNIError, invalid_config
from pycni.spec.record import Record
from pycni.spec.versions import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar, Self


MAX_FAULTS = 64  # of one document; what follows them is not looked at

_HEX = frozenset("0123456789abcdefABCDEF")


class Fault(Record):
    """One thing wrong with a document: where (`ipam.ranges[0]`), what, and what was expected."""

    path: str
    problem: str
    expected: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + self.problem


class Kind:
    """What values a field takes. `decode` appends to `faults` and returns anything on a fault."""

    expected = ""

    def decode(self, value: Any, path: str, faults: list[Fault]) -> Any:
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """The kind as JSON Schema."""
        raise NotImplementedError

    def encode(self, value: Any) -> Any:
        """The JSON form of a decoded value."""
        return value

    def wrong(self, value: Any, path: str, faults: list[Fault]) -> None:
        faults.append(Fault(path, f"{describe(value)} is not valid", f"expected {self.expected}"))


class Anything(Kind):
    """Any JSON value, handed on as it is."""

    expected = "any value"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> Any:
        return value

    def schema(self) -> dict[str, Any]:
        return {}


class Text(Kind):
    """A string; one of `choices` if there are any."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices
        self.expected = " or ".join(f'"{choice}"' for choice in choices) or "a string"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> str:
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            self.wrong(value, path, faults)
            return ""
        if "\0" in value:  # the kernel would cut it there
            faults.append(Fault(path, "a NUL character is not valid", f"expected {self.expected}"))
            return ""
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", **({"enum": list(self.choices)} if self.choices else {})}


class Flag(Kind):
    """true or false."""

    expected = "true or false"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> bool:
        if not isinstance(value, bool):
            self.wrong(value, path, faults)
            return False
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Integer(Kind):
    """A whole number within bounds, both included."""

    def __init__(self, minimum: int = -(1 << 63), maximum: int = (1 << 63) - 1) -> None:
        self.minimum = minimum
        self.maximum = maximum
        if (minimum, maximum) == (-(1 << 63), (1 << 63) - 1):
            self.expected = "a whole number of 64 bits"
        else:
            self.expected = f"a whole number from {minimum} to {maximum}"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> int:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and self.minimum <= value <= self.maximum:
            return int(value)
        self.wrong(value, path, faults)
        return 0

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


class Address(Kind):
    """An IPv4 or IPv6 address; an empty string counts as none."""

    expected = "an IPv4 or IPv6 address"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> ip.IPAddress | None:
        if isinstance(value, str):
            try:
                return ip.parse_address(value) if value else None
            except ValueError as error:
                faults.append(Fault(path, str(error), f"expected {self.expected}"))
                return None
        self.wrong(value, path, faults)
        return None

    def encode(self, value: Any) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}


class CIDR(Kind):
    """An address with its prefix length, such as 10.1.0.0/16; host bits are kept."""

    expected = "an address with a prefix length, such as 10.1.0.0/16"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> ip.IPNetwork | None:
        if isinstance(value, str):
            try:
                return ip.parse_network(value)
            except ValueError as error:
                faults.append(Fault(path, str(error), f"expected {self.expected}"))
                return None
        self.wrong(value, path, faults)
        return None

    def encode(self, value: Any) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}


class MACAddress(Kind):
    """An Ethernet address, kept as lower-case text with colons."""

    expected = "a MAC address such as 0a:58:0a:01:02:03"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> str:
        if isinstance(value, str):
            mac = normal_mac(value)
            if mac or not value:
                return mac
        self.wrong(value, path, faults)
        return ""

    def schema(self) -> dict[str, Any]:
        pair, four = "[0-9a-fA-F]{2}", "[0-9a-fA-F]{4}"
        forms = "|".join(
            (f"({pair}:){{5}}{pair}", f"({pair}-){{5}}{pair}", f"({four}\\.){{2}}{four}")
        )
        return {"type": "string", "pattern": f"^({forms})?$"}


class ListOf(Kind):
    """A list whose items are all of one kind; decoded to a tuple."""

    def __init__(self, item: Kind) -> None:
        self.item = item
        self.expected = f"a list, each item {item.expected}"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> tuple[Any, ...]:
        if not isinstance(value, list):
            self.wrong(value, path, faults)
            return ()
        decoded = []
        for index, item in enumerate(value):
            if len(faults) >= MAX_FAULTS:
                faults.append(_unread(f"{path}[{index}]"))
                break
            decoded.append(self.item.decode(item, f"{path}[{index}]", faults))
        return tuple(decoded)

    def encode(self, value: Any) -> list[Any]:
        return [self.item.encode(item) for item in value]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.schema()}


class MapOf(Kind):
    """An object with free keys whose values are all of one kind; decoded to a dict."""

    def __init__(self, item: Kind) -> None:
        self.item = item
        self.expected = f"an object, each value {item.expected}"

    def decode(self, value: Any, path: str, faults: list[Fault]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.wrong(value, path, faults)
            return {}
        decoded = {}
        for key, item in value.items():
            if item is None:
                continue
            if len(faults) >= MAX_FAULTS:
                faults.append(_unread(_join(path, key)))
                break
            if "\0" in key:  # as in a value
                problem = f"a NUL character in the key {quote(key)} is not valid"
                faults.append(Fault(path, problem, f"expected {self.expected}"))
                continue
            decoded[key] = self.item.decode(item, _join(path, key), faults)
        return decoded

    def encode(self, value: Any) -> dict[str, Any]:
        return {key: self.item.encode(item) for key, item in value.items()}

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.item.schema()}


class Object(Kind):
    """An object of a `Config` class."""

    expected = "an object"

    def __init__(self, config: type[Config]) -> None:
        self.config = config

    def decode(self, value: Any, path: str, faults: list[Fault]) -> Any:
        if not isinstance(value, dict):
            self.wrong(value, path, faults)
            return None
        return self.config.read_lenient(value, path, faults)

    def encode(self, value: Any) -> dict[str, Any]:
        encoded: dict[str, Any] = value.to_json()
        return encoded

    def schema(self) -> dict[str, Any]:
        return self.config.schema()


class Field:
    """One key of an object: its name on the wire, its kind, what its absence means.

    default_doc says the default in words, where the value does not: "the master's".
    """

    def __init__(
        self, key: str, kind: Kind, default: Any, required: bool, doc: str, default_doc: str
    ) -> None:
        self.key = key
        self.kind = kind
        self.default = default
        self.required = required
        self.doc = doc
        self.default_doc = default_doc


def field(
    key: str,
    kind: Kind,
    default: Any = None,
    *,
    required: bool = False,
    doc: str,
    default_doc: str = "",
) -> Any:
    """Declare one key of a `Config`; typed Any so that the annotation beside it is what counts."""
    return Field(key, kind, default, required, doc, default_doc)


class Config(Record):
    """A JSON object with declared keys. Subclasses inherit the fields of their bases."""

    declared: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        inherited: dict[str, Field] = {}
        for base in reversed(cls.__bases__):
            inherited.update(getattr(base, "declared", {}))
        cls.declared = {**inherited, **own}
        for name, declared in own.items():
            setattr(cls, name, declared.default)
        super().__init_subclass__()

    @classmethod
    def decode(cls, document: Any, path: str = "") -> Self:
        """Read a JSON object. Raises CNIError (code 7) that names the first fault, and the rest."""
        config = cls.decode_unvalidated(document, path)
        config.validate()
        return config

    @classmethod
    def decode_unvalidated(cls, document: Any, path: str = "") -> Self:
        """`decode` without the rules between keys, which the caller checks later."""
        faults: list[Fault] = []
        config = cls.read_lenient(document, path, faults)
        if faults:
            raise faults_error(faults)
        return config

    @classmethod
    def errors(cls, document: Any, path: str = "") -> list[Fault]:
        """Everything that is wrong with a document, types first and then the rules between keys."""
        found: list[Fault] = []
        config = cls.read_lenient(document, path, found)
        if not found:
            try:
                config.validate()
            except CNIError as error:
                found.append(Fault(path, error.message, error.details))
        return found

    @classmethod
    def read_lenient(cls, document: Any, path: str, faults: list[Fault]) -> Self:
        """Read a JSON object, appending what is wrong with it to `faults`.

        A key with a fault counts as absent.
        """
        if not isinstance(document, dict):
            faults.append(Fault(path, f"{describe(document)} is not valid", "expected an object"))
            return cls()
        by_key, by_folded_key, required = _keys.get(cls) or _read_keys(cls)
        given: dict[str, Any] = {}
        for key, value in document.items():
            name = by_key.get(key)
            if name is None:
                name = by_folded_key.get(key.lower())
                if name is None or cls.declared[name].key in document:
                    continue
            given[name] = value
        values: dict[str, Any] = {}
        for name, value in given.items():
            if value is not None:
                declared = cls.declared[name]
                known = len(faults)
                decoded = declared.kind.decode(value, _join(path, declared.key), faults)
                if len(faults) == known:
                    values[name] = decoded
        for name in required:
            if given.get(name) is None:
                declared = cls.declared[name]
                where = _join(path, declared.key)
                faults.append(Fault(where, "missing", f"expected {declared.kind.expected}"))
        return cls(**values)

    def validate(self) -> None:
        """Rules between keys; raises CNIError.

        Subclasses override it. It is called for the outermost object only, which calls it for those
        within as needed.
        """

    def to_json(self) -> dict[str, Any]:
        """The object with every key whose value is not the default."""
        return {
            declared.key: declared.kind.encode(getattr(self, name))
            for name, declared in self.declared.items()
            if getattr(self, name) != declared.default
        }

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The declared keys as a JSON Schema (draft 2020-12) object."""
        properties = {}
        for declared in cls.declared.values():
            says = declared.doc
            if declared.default_doc:
                says = f"{says}; default: {declared.default_doc}"
            properties[declared.key] = {**declared.kind.schema(), "description": says}
            if declared.default not in (None, (), "") and not isinstance(declared.default, Record):
                properties[declared.key]["default"] = declared.kind.encode(declared.default)
        required = [declared.key for declared in cls.declared.values() if declared.required]
        return {
            "type": "object",
            "properties": properties,
            **({"required": required} if required else {}),
        }


# Of the classes that have been read: their fields' names by key, and by key in lower case; those
# that must be given. A plugin reads few of those that it imports.
_keys: dict[type[Config], tuple[dict[str, str], dict[str, str], tuple[str, ...]]] = {}


def _read_keys(cls: type[Config]) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    by_key = {declared.key: name for name, declared in cls.declared.items()}
    by_folded_key = {key.lower(): name for key, name in by_key.items()}
    required = tuple([name for name, found in cls.declared.items() if found.required])
    found = _keys[cls] = (by_key, by_folded_key, required)
    return found


def faults_error(faults: Sequence[Fault]) -> CNIError:
    """The error for faults in a configuration (code 7)."""
    expected = "; ".join(
        f"{fault.path}: {fault.expected}" if len(faults) > 1 else fault.expected
        for fault in faults
        if fault.expected
    )
    return invalid_config("; ".join(map(str, faults)), expected)


def normal_mac(text: str) -> str:
    """A 6-byte MAC address in lower case with colons, from colon, hyphen or dot form; or ""."""
    for separator, width in ((":", 2), ("-", 2), (".", 4)):
        parts = text.split(separator)
        if len(parts) == 12 // width and all(len(part) == width for part in parts):
            digits = "".join(parts)
            return bytes.fromhex(digits).hex(":") if _HEX.issuperset(digits) else ""
    return ""


def describe(value: Any) -> str:
    """A JSON value as an error names it: short, with its type where that is the surprise."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 64 else f'"{value[:61]}..."'
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    number = repr(value)
    return number if len(number) <= 64 else f"{number[:61]}..."


def _unread(path: str) -> Fault:
    return Fault(path, "what follows was not looked at: there are too many faults before it")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
