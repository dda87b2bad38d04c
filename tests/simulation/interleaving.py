"""Modules of which every statement is a point where another thread may go on: what only a lock keeps apart is not kept
apart by running quickly."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType, ModuleType

_PAUSE = "__pause__"


@contextmanager
def interleaved(pause: Callable[[], object], *modules: ModuleType) -> Iterator[int]:
    """Have the functions of `modules` call `pause` before each of their statements; gives how many functions."""
    undo: list[tuple[FunctionType, CodeType]] = []
    try:
        for module in modules:
            setattr(module, _PAUSE, pause)
            changed = _compiled(module)
            for function in _functions(module):
                if (code := changed.get(function.__qualname__)) is not None:
                    undo.append((function, function.__code__))
                    function.__code__ = code
        yield len(undo)
    finally:
        for function, code in undo:
            function.__code__ = code
        for module in modules:
            vars(module).pop(_PAUSE, None)


class _Pausing(ast.NodeTransformer):
    """Puts a call before each statement of a function."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef):
            return node
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and statements and isinstance(statements[0], ast.stmt):
                setattr(node, name, [made for one in statements for made in (_call(one), one) if made is not None])
        return node


def _call(before: ast.stmt) -> ast.stmt | None:
    """The call that is put before a statement; none before a docstring or what must come first."""
    if isinstance(before, ast.Global | ast.Nonlocal):
        return None
    if isinstance(before, ast.Expr) and isinstance(before.value, ast.Constant):
        return None
    call = ast.Expr(ast.Call(ast.Name(_PAUSE, ast.Load()), [], []))
    return ast.fix_missing_locations(ast.copy_location(call, before))


@cache
def _compiled(module: ModuleType) -> dict[str, CodeType]:
    """The code of all functions of `module`, by qualified name, with the calls in it."""
    path = inspect.getsourcefile(module)
    tree = _Pausing().visit(ast.parse(inspect.getsource(module)))
    found: dict[str, CodeType] = {}

    def gather(code: CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                found[constant.co_qualname] = constant
                gather(constant)

    gather(compile(tree, path or module.__name__, "exec", dont_inherit=True))
    return found


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Functions and methods that are defined in `module`."""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        members = [thing, *(vars(thing).values() if isinstance(thing, type) else ())]
        for member in members:
            for part in (member, *(getattr(member, name, None) for name in ("fget", "__func__", "__wrapped__"))):
                if isinstance(part, FunctionType) and part.__code__.co_filename == module.__file__:
                    yield part
