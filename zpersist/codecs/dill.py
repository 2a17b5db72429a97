"""What pickle can't: functions, lambdas, classes made inside functions."""

from __future__ import annotations

from typing import Any

from zpersist.codecs.base import Codec
from zpersist.codecs.claims import check_claims
from zpersist.codecs.told import told
from zpersist.errors import DecodeError, EncodeError

__all__ = ["DillCodec"]


class DillCodec(Codec):
    """Keeps whatever `dill <https://dill.readthedocs.io>`_ can, following references (``recurse=True``).

    Slower than :class:`~zpersist.PickleCodec`, and large buffers are copied.

    Notes
    -----
    *Trust*: loading runs whatever code the bytes name.  Load only what you, or those you trust, have written.

    Examples
    --------
    >>> codec = DillCodec()
    >>> codec.loads(codec.dumps(lambda x: x + 1))(1)
    2
    """

    id = "dill"

    def dumps(self, value: object) -> bytes:
        """Return the value as dill writes it."""
        import dill

        try:
            return bytes(dill.dumps(value, protocol=5, recurse=True))
        except MemoryError:
            raise
        except Exception as err:
            raise EncodeError(
                f"a {type(value).__qualname__} can't be written by dill ({told(err)}); {_remedy(err)}"
            ) from err

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value that dill wrote."""
        import dill

        try:
            return dill.loads(data)
        except MemoryError:
            check_claims(data)
            raise
        except Exception as err:
            raise DecodeError(f"intact dill bytes can't be loaded ({told(err)})") from err


def _remedy(err: Exception) -> str:
    if "memoryview" in told(err):
        return "keep the tobytes() of views, or use codec=PickleCodec(), which keeps them"
    return "leave it out"
