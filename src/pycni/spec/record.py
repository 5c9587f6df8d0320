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

    def __init_subclass__(cls) -> None:
        own = (name for name, kind in cls.__annotations__.items() if not _is_class_variable(kind))
        inherited = (
            name for base in reversed(cls.__bases__) for name in getattr(base, "_fields", ())
        )
        cls._fields = tuple(dict.fromkeys((*inherited, *own)))

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if len(values) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} values, got {len(values)}")
        mine = self.__dict__
        for name, value in zip(fields, values, strict=False):
            if name in named:
                raise TypeError(f"{type(self).__name__}: {name} given twice")
            mine[name] = value
        mine.update(named)
        for name in fields:
            if name not in mine:
                if not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__} needs {name}")
                mine[name] = getattr(type(self), name)
        if len(mine) > len(fields):
            unknown = sorted(mine.keys() - set(fields))
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({body})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})


def _is_class_variable(annotation: object) -> bool:
    return isinstance(annotation, str) and annotation.startswith("ClassVar")
