"""A value that a data-only codec can't keep, and the place where it was found."""

from __future__ import annotations

__all__ = ["Refused"]


class Refused(Exception):  # noqa: N818 - a signal, not an error
    """A value that can't be kept; on its way up it learns its place.

    Parameters
    ----------
    value :
        The value.
    what :
        What is wrong with it, and what to do.
    """

    def __init__(self, value: object, what: str) -> None:
        super().__init__(what)
        self.value = value
        self.what = what
        self.place: list[str] = []

    def inside(self, container: object, piece: str) -> None:
        """Add the place in a container."""
        self.place.append(piece)
        if self.value is container:
            # It was too deep because it holds itself: the shortest way to it is enough.
            self.what = "holds itself: keep names or numbers of things in place of the things"
            self.place.clear()

    def told(self) -> str:
        """Return the place and what is wrong."""
        pieces = self.place[::-1]
        return f"value{''.join(pieces[:8])}{'…' if len(pieces) > 8 else ''} {self.what}"
