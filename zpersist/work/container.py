"""Objects with works, pickled as they should be."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from zpersist.work.dealloc import Deallocatable
from zpersist.work.work import PersistedWork

__all__ = ["PersistableContainer", "PersistableContainerMetadata"]


class PersistableContainerMetadata:
    """Tells which works an object has.

    Parameters
    ----------
    container :
        The object.
    """

    def __init__(self, container: PersistableContainer) -> None:
        self.container = container

    @property
    def persisted(self) -> dict[str, PersistedWork]:
        """The works by the names of the attributes."""
        return {name: work for name, work in vars(self.container).items() if isinstance(work, PersistedWork)}

    def write(
        self, indent: int = 0, include_content: bool = False, recursive: bool = False, writer: TextIO | None = None
    ) -> None:
        """Write what attributes and works the object has.

        Parameters
        ----------
        indent :
            Blanks before each line.
        include_content :
            Write also the values.
        recursive :
            Write also the containers among the attributes, further in.
        writer :
            Where to; default: the standard output.
        """
        out = sys.stdout if writer is None else writer
        blanks = " " * indent
        for name, value in vars(self.container).items():
            if isinstance(value, PersistedWork):
                value.write(indent, include_content, out)
                continue
            out.write(f"{blanks}{name}:\n{blanks}  type: {type(value)}\n")
            if include_content:
                out.write(f"{blanks}  content: {value}\n")
            if recursive and isinstance(value, PersistableContainer):
                value._get_persistable_metadata().write(indent + 2, include_content, True, out)

    def clear(self) -> None:
        """Clear all works of the object."""
        for work in self.persisted.values():
            work.clear()


class PersistableContainer(Deallocatable):
    """A class to inherit from: instances are pickled with their works, and deallocate them.

    What is transient stays behind: the results of transient works, and the attributes that the class names in

    * ``_PERSISTABLE_TRANSIENT_ATTRIBUTES``: ``None`` in the pickle;
    * ``_PERSISTABLE_REMOVE_ATTRIBUTES``: not in the pickle at all;
    * ``_PERSISTABLE_PROPERTIES``, ``_PERSISTABLE_METHODS``: read, or called, before pickling, so that what they
      compute travels.

    The names are also honoured as ``zensols.persist`` spells them (``_PERSITABLE_…``).

    Examples
    --------
    >>> import pickle
    >>> class Corpus(PersistableContainer):
    ...     _PERSISTABLE_TRANSIENT_ATTRIBUTES = {"connection"}
    ...     def __init__(self, text):
    ...         self.text = text
    ...         self.connection = lambda: "can't be pickled"
    ...     @property
    ...     @persisted("_words")
    ...     def words(self):
    ...         print("splitting")
    ...         return self.text.split()
    >>> corpus = Corpus("to be")
    >>> corpus.words
    splitting
    ['to', 'be']
    >>> twin = pickle.loads(pickle.dumps(corpus))
    >>> twin.words, twin.connection
    (['to', 'be'], None)
    """

    def _persistable(self, what: str) -> Iterable[str]:
        names = [*getattr(self, f"_PERSISTABLE_{what}", ()), *getattr(self, f"_PERSITABLE_{what}", ())]
        return dict.fromkeys(names)

    def __getstate__(self) -> dict[str, Any]:
        for name in self._persistable("PROPERTIES"):
            getattr(self, name)
        for name in self._persistable("METHODS"):
            getattr(self, name)()
        state = dict(self.__dict__)
        state.update(dict.fromkeys(self._persistable("TRANSIENT_ATTRIBUTES")))
        for name in self._persistable("REMOVE_ATTRIBUTES"):
            state.pop(name, None)
        for name, work in state.items():
            if isinstance(work, PersistedWork):
                # A work of its own, for copy.copy takes the state as it is.
                twin: PersistedWork = object.__new__(type(work))
                twin.__setstate__(work.__getstate__())
                state[name] = twin
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for work in state.values():
            if isinstance(work, PersistedWork):
                work.owner = self

    def _get_persistable_metadata(self) -> PersistableContainerMetadata:
        """Return what tells about the works of this object."""
        return PersistableContainerMetadata(self)

    def _clear_persistable_state(self) -> None:
        """Clear all works of this object."""
        self._get_persistable_metadata().clear()

    def deallocate(self) -> None:
        """Deallocate all works of this object."""
        super().deallocate()
        for work in self._get_persistable_metadata().persisted.values():
            work.deallocate()
