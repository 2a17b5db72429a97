"""Names for files, sizes for people."""

from __future__ import annotations

import getpass
import re
from datetime import datetime
from pathlib import Path

__all__ = ["FileTextUtil", "byte_format", "normalize_path", "normalize_text", "unique_tracked_name"]

_SPECIAL = re.compile(r"""[ \t\n\\\[\]()/<>{}:;_`'"|!@#$%^&*~?,+=.-]+""")


def normalize_text(
    name: str,
    replace_char: str = "-",
    lower: bool = True,
    regex: re.Pattern[str] | None = None,
    remove_non_printable: bool = False,
) -> str:
    """Return a text with each run of special characters replaced, so that it makes a plain file name.

    Different texts may give the same name: it is for people to read, not for keys.

    Parameters
    ----------
    name :
        The text.
    replace_char :
        What stands for special characters; one of them is cut off at either end.
    lower :
        Write it in small letters.
    regex :
        What is special; default: white space and punctuation.
    remove_non_printable :
        Keep printable ASCII characters only.

    Examples
    --------
    >>> normalize_text("Test of File! Text@ Util")
    'test-of-file-text-util'
    """
    name = (_SPECIAL if regex is None else regex).sub(replace_char, name.lower() if lower else name)
    if len(name) > 1:
        name = name.removeprefix(replace_char)
        if len(name) > 1:
            name = name.removesuffix(replace_char)
    if remove_non_printable:
        name = "".join(char for char in name if char.isascii() and (char.isprintable() or char.isspace()))
    return name


def normalize_path(
    path: Path,
    replace_char: str = "-",
    lower: bool = True,
    regex: re.Pattern[str] | None = None,
    remove_non_printable: bool = False,
) -> Path:
    """Return a path with each part but the root and ``~`` as :func:`normalize_text` makes it.

    Examples
    --------
    >>> str(normalize_path(Path("~/src/file.c")))
    '~/src/file-c'
    """
    return Path(
        *(
            part
            if part in ("~", path.anchor)
            else normalize_text(part, replace_char, lower, regex, remove_non_printable)
            for part in path.parts
        )
    )


def byte_format(num: float, suffix: str = "B") -> str:
    """Return a number of bytes for people, in powers of 1,024.

    Examples
    --------
    >>> byte_format(1024), byte_format(3 * 1024**3)
    ('1.0KiB', '3.0GiB')
    """
    for unit in ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi"):
        if abs(num) < 1024:
            return f"{num:3.1f}{unit}{suffix}"
        num /= 1024
    return f"{num:.1f}Yi{suffix}"


def unique_tracked_name(
    prefix: str, include_user: bool = True, include_time: bool = True, extension: str | None = None
) -> str:
    """Return a file name that says who made the file and when, to the microsecond.

    Parameters
    ----------
    prefix :
        The start of the name.
    include_user :
        Add the name of the user.
    include_time :
        Add the date and time.
    extension :
        The end of the name, without its dot.
    """
    user = f"-{getpass.getuser()}" if include_user else ""
    time = f"-{datetime.now().strftime('%b%d-%H%M-%S%f')}" if include_time else ""
    return f"{prefix}{user}{time}{'' if extension is None else f'.{extension}'}".lower()


class FileTextUtil:
    """The functions of this module as methods, as ``zensols.persist`` has them."""

    normalize_text = staticmethod(normalize_text)
    normalize_path = staticmethod(normalize_path)
    byte_format = staticmethod(byte_format)
    unique_tracked_name = staticmethod(unique_tracked_name)
