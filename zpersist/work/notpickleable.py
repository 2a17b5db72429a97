"""Objects that must not be pickled."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from zpersist.errors import NotPickleableError

__all__ = ["NotPickleable"]


class NotPickleable:
    """A class to inherit from if instances hold what can't travel: connections, locks, secrets.

    Pickling raises :class:`~zpersist.NotPickleableError`; ``copy.copy`` works.

    Examples
    --------
    >>> import pickle
    >>> class Connection(NotPickleable):
    ...     pass
    >>> pickle.dumps(Connection())
    Traceback (most recent call last):
    zpersist.errors.NotPickleableError: a Connection must not be pickled; leave it out of what you store
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise NotPickleableError(f"a {type(self).__qualname__} must not be pickled; leave it out of what you store")

    def __copy__(self) -> NotPickleable:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin
