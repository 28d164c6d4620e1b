"""Names of locks: from a function, its caller, or the arguments of a call."""

from __future__ import annotations

import functools
import gc
import inspect
import string
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

from ._arguments import text
from .exceptions import LockConfigError


def name_of(what: Any) -> str:
    """`module.qualname` of a function or class."""
    return f"{what.__module__}.{what.__qualname__}"


def name_of_function(func: Any) -> str:
    """`module.qualname` of a decorated function, which may be a `functools.partial`."""
    if not isinstance(func, functools.partial):
        name = name_of(func)
        if name.endswith("<lambda>"):
            raise LockConfigError(
                "a lambda has no name, so all lambdas of a module would share one lock: give a name, "
                'locked("name")(lambda …), or one that depends on the arguments, '
                'locked("tenant-{tenant_id}") or locked(lock_name=lambda tenant_id: …)'
            )
        return name
    bound = func.func
    # `method_decorator` decorates at each call, and has the method in `__wrapped__`.
    if inspect.ismethod(bound) and "__wrapped__" in func.__dict__:
        for base in type(bound.__self__).__mro__:
            if _wraps(vars(base).get(bound.__name__), bound.__func__):
                own = bound.__qualname__ == f"{base.__qualname__}.{bound.__name__}"
                return name_of(bound if own else base)
    return name_of(bound)


def _wraps(outer: Any, inner: Any) -> bool:
    for _ in range(100):
        if outer is None or outer is inner:
            break
        outer = getattr(outer, "__wrapped__", None)
    return outer is inner and outer is not None


_Arguments = Callable[[tuple[Any, ...], dict[str, Any]], str]


def fields(name: str, func: Any) -> _Arguments | None:
    """A function that fills the fields of a name from the arguments of a call; ``None`` without
    fields.

    Raises `LockConfigError` for a field that is no parameter of the function.
    """
    try:
        parsed = [field for _, field, _, _ in string.Formatter().parse(name) if field is not None]
    except ValueError as error:
        raise LockConfigError(
            f"`lock_name` is {name!r}, whose fields cannot be parsed: {error}; write a literal "
            "brace twice"
        ) from None
    if not parsed:
        return None
    # The partial of `method_decorator` wraps the method without `self`.
    signature = inspect.signature(func, follow_wrapped=not isinstance(func, functools.partial))
    words = inspect.Parameter.VAR_KEYWORD
    known = [one.name for one in signature.parameters.values() if one.kind is not words]
    open_ended = len(known) < len(signature.parameters)
    for field in parsed:
        first = field.partition(".")[0].partition("[")[0]
        if not first.isidentifier() or (first not in known and not open_ended):
            raise LockConfigError(
                f"`lock_name` is {name!r}, and {func.__qualname__} has no parameter {first!r}: use "
                f"one of {', '.join(known) or 'none'}, or write a literal brace twice"
            )

    def filled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            if signature.parameters[key].kind is words:
                values.update(value)
            values[key] = value
        return _filled(name, values)

    return filled


def _filled(name: str, values: Mapping[str, Any]) -> str:
    try:
        return text("lock_name", string.Formatter().vformat(name, (), values))
    except (LookupError, AttributeError, TypeError) as error:
        raise LockConfigError(
            f"`lock_name` is {name!r}, and the arguments of this call have no {error}"
        ) from error


def unescaped(name: str) -> str:
    """The name without fields: a doubled brace becomes a single one."""
    return string.Formatter().vformat(name, (), {})


def called(naming: Callable[..., str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The name that the caller's function returns for these arguments."""
    return text("lock_name", naming(*args, **kwargs))


Caller = tuple[str, CodeType]
"""A module name and a function's code. A frame would keep its local variables alive."""


def caller(depth: int) -> Caller:
    """The function ``depth`` calls above the one that calls this."""
    frame = sys._getframe(depth + 1)
    return frame.f_globals.get("__name__", "__main__"), frame.f_code


def name_of_caller(caller: Caller) -> str:
    """`module.qualname` of the calling function."""
    module, code = caller
    if code.co_name == "<module>":
        raise LockConfigError(
            "lock() without a name takes the name of the function around it, and there is none at "
            "module level: give it a name"
        )
    return f"{module}.{_qualname(code)}"


_qualnames: dict[CodeType, str] = {}


def _qualname(code: CodeType) -> str:
    if hasattr(code, "co_qualname"):
        return str(code.co_qualname)
    # Before Python 3.11 code objects have no qualified name, only functions.
    if code not in _qualnames:
        functions = (f for f in gc.get_referrers(code) if isinstance(f, FunctionType))
        _qualnames[code] = next((f.__qualname__ for f in functions), code.co_name)
    return _qualnames[code]
