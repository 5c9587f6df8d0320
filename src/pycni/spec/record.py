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
    from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

    _T = TypeVar("_T")
else:

    def dataclass_transform(**_: Any) -> Callable[[_T], _T]:
        """Tell type checkers what `Record` does; they read it, the interpreter does not."""
        return lambda cls: cls


@dataclass_transform()
class Record:
    """Base of all plain data. Mutable defaults are shared, so use tuples or None for them."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        names: list[str] = []
        defaults: dict[str, Any] = {}
        for base in reversed(cls.__bases__):
            if issubclass(base, Record):
                names += base._fields
                defaults |= base._defaults
        names += [
            name for name, kind in cls.__annotations__.items() if not _is_class_variable(kind)
        ]
        own = vars(cls)
        cls._fields = tuple(dict.fromkeys(names))
        cls._names = frozenset(names)
        cls._defaults = defaults | {name: own[name] for name in cls._fields if name in own}

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        mine = self.__dict__
        mine.update(self._defaults)
        if values:
            if len(values) > len(fields):
                raise TypeError(f"{self._type} takes {len(fields)} values, got {len(values)}")
            if not named.keys().isdisjoint(fields[: len(values)]):
                twice = next(name for name in fields if name in named)
                raise TypeError(f"{self._type}: {twice} given twice")
            mine.update(zip(fields, values, strict=False))
        mine.update(named)
        if mine.keys() != self._names:
            self._refuse_unknown(named)
            missing = next(name for name in fields if name not in mine)
            raise TypeError(f"{self._type} needs {missing}")

    @property
    def _type(self) -> str:
        return type(self).__name__

    def _refuse_unknown(self, named: dict[str, Any]) -> None:
        if not self._names.issuperset(named):
            unknown = ", ".join(sorted(named.keys() - self._names))
            raise TypeError(f"{self._type} has no field {unknown}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{self._type}({body})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        self._refuse_unknown(changes)
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy


def _is_class_variable(annotation: object) -> bool:
    return isinstance(annotation, str) and annotation.startswith("ClassVar")
