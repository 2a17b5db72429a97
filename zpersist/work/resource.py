"""Methods that are given a resource, which is made before and destroyed after."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

__all__ = ["resource"]

P = ParamSpec("P")
R = TypeVar("R")


class resource:  # noqa: N801 - a public name of zensols.persist
    """Give a method a resource as its first argument, and destroy it when the method ends, however it ends.

    Parameters
    ----------
    create_method_name :
        The method that makes the resource.
    destroy_method_name :
        The method that destroys it, given as the argument.

    Examples
    --------
    >>> class Store:
    ...     def connect(self):
    ...         return "connection"
    ...     def disconnect(self, connection):
    ...         print("closed", connection)
    ...     @resource("connect", "disconnect")
    ...     def size(self, connection, factor):
    ...         return len(connection) * factor
    >>> Store().size(2)
    closed connection
    20
    """

    def __init__(self, create_method_name: str, destroy_method_name: str) -> None:
        self.create_method_name = create_method_name
        self.destroy_method_name = destroy_method_name

    def __call__(self, fn: Callable[Concatenate[Any, Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        """Return the method that makes and destroys the resource by itself."""

        @wraps(fn)
        def wrapped(inst: Any, *args: P.args, **kwargs: P.kwargs) -> R:
            made = getattr(inst, self.create_method_name)()
            try:
                return fn(inst, made, *args, **kwargs)
            finally:
                getattr(inst, self.destroy_method_name)(made)

        return cast(Callable[Concatenate[Any, P], R], wrapped)
