"""Plain data with named fields: what `dataclasses` gives, without its import.

A plugin is a process of a few milliseconds, and importing `dataclasses` costs ten of them. A
`Record` declares its fields by annotation, in order, with defaults as class attributes, and gets
a constructor (positional or by keyword), equality, a readable repr and `replace`. Records are
values: nothing writes to one after it has been handed on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar, dataclass_transform

    _T = TypeVar("_T")
else:

    def dataclass_transform(**_: Any) -> Callable[[_T], _T]:
        """What `Record` does, for type checkers; the interpreter does not read it."""
        return lambda cls: cls


class _Signature:
    """What `inspect.signature` and editors show of a record's constructor."""

    def __get__(self, _: object, cls: type[Record]) -> Any:
        from inspect import Parameter, Signature

        kinds: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            kinds.update(getattr(base, "__annotations__", {}))
        fields, _, required = _layouts.get(cls) or _layout(cls)
        return Signature(
            [
                Parameter(
                    name,
                    Parameter.POSITIONAL_OR_KEYWORD,
                    default=Parameter.empty if name in required else getattr(cls, name),
                    annotation=kinds[name],
                )
                for name in fields
            ]
        )


@dataclass_transform()
class Record:
    """Base of all plain data. Mutable defaults are shared, so use tuples or None for them."""

    __signature__ = _Signature()

    def __init__(self, *values: Any, **named: Any) -> None:
        fields, names, required = _layouts.get(type(self)) or _layout(type(self))
        if named and not names.issuperset(named):
            self._refuse_unknown(named)
        if values:
            given = dict(zip(fields, values))  # noqa: B905 - they are counted
            if named:
                given.update(named)
            if len(given) != len(values) + len(named):
                self._refuse_values(values, named)
            named = given
        if len(named) != len(fields):
            for name in required:
                if name not in named:
                    raise TypeError(f"{self._type} needs {name}")
        self.__dict__ = named

    @property
    def _type(self) -> str:
        return type(self).__name__

    @property
    def _learned(self) -> tuple[tuple[str, ...], frozenset[str], tuple[str, ...]]:
        return _layouts.get(type(self)) or _layout(type(self))

    @property
    def _fields(self) -> tuple[str, ...]:
        return self._learned[0]

    @property
    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self._fields])

    def _refuse_unknown(self, named: dict[str, Any]) -> None:
        unknown = ", ".join(sorted(named.keys() - self._fields))
        raise TypeError(f"{self._type} has no field {unknown}")

    def _refuse_values(self, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        fields = self._fields
        if len(values) > len(fields):
            raise TypeError(f"{self._type} takes {len(fields)} values, got {len(values)}")
        twice = next(name for name in fields if name in named)
        raise TypeError(f"{self._type}: {twice} given twice")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values == other._values

    def __hash__(self) -> int:
        return hash((type(self), self._values))

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{self._type}({body})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        if not self._learned[1].issuperset(changes):
            self._refuse_unknown(changes)
        copy = object.__new__(type(self))
        copy.__dict__ = {**self.__dict__, **changes}
        return copy


# Of the classes that have been used: their fields in order, the same as a set, and those without
# a default. A plugin has use for few of those that it imports.
_layouts: dict[type[Record], tuple[tuple[str, ...], frozenset[str], tuple[str, ...]]] = {}


def _layout(cls: type[Record]) -> tuple[tuple[str, ...], frozenset[str], tuple[str, ...]]:
    names: dict[str, None] = {}
    held: set[str] = set()
    for base in reversed(cls.__mro__):
        if base is object or base is Record:
            continue
        own = vars(base)
        held.update(own)
        for name, kind in getattr(base, "__annotations__", {}).items():
            # They are text, or what they name where a module does not postpone annotations.
            if not str(kind).startswith(("ClassVar", "typing.ClassVar")):
                names[name] = None
        for name in names.keys() & own.keys():
            if isinstance(own[name], type(_layout)):  # a default, which would be a method
                setattr(base, name, staticmethod(own[name]))
    fields = tuple(names)
    required = tuple([name for name in fields if name not in held])
    found = _layouts[cls] = (fields, frozenset(fields), required)
    return found
