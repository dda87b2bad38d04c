"""Plain data that costs nothing to declare.

The standard dataclass decorator compiles about six functions for each class, a millisecond that every start of the
command pays for every class it imports. The classes here are declared by the dozen and made by the hundred, so they
share their methods instead. For the type checker they are frozen dataclasses.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Base of frozen plain data: the annotations of a class, in order, are its fields; ClassVars are not.

    Fields are given by position or keyword, equality is by type and fields. Raises TypeError for missing or unknown
    ones, AttributeError when one is set again.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = (name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))
        cls.FIELDS = (*cls.FIELDS, *own)

    def __init__(self, *values: Any, **named: Any) -> None:
        named.update(zip(self.FIELDS, values, strict=False))
        if len(values) > len(self.FIELDS) or not named.keys() <= set(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has no such fields: {sorted(named.keys() - set(self.FIELDS))}")
        for name in self.FIELDS:
            if name in named:
                object.__setattr__(self, name, named[name])
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *map(repr, self._values())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.FIELDS)


R = TypeVar("R", bound=Record)


def changed(record: R, **values: Any) -> R:
    """A copy of `record` with other `values`. Raises TypeError for fields that it has not."""
    return type(record)(**{**{name: getattr(record, name) for name in record.FIELDS}, **values})
