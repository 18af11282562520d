"""Reads pickle files of dataset releases without executing code in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

from refbench.errors import DatasetError
from refbench.storage.files import check_is_file

DATA_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
    "FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT "
    "SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
).split()


class _PlainUnpickler(pickle._Unpickler):
    """Reads dicts, lists, tuples, strings and numbers; does not implement opcodes that could call a function.

    It is based on the Python implementation for two reasons. The opcode table can be reduced to plain data. The memo is
    a dict, so a forged index cannot make it allocate gigabytes, which is possible in the C implementation.
    """

    dispatch: ClassVar = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in DATA_OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Unpickle a file that contains only plain data.

    Raises:
        DatasetError: the pickle refers to a class or function, which could run code, or it is damaged.
    """
    try:
        check_is_file(path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith(b"\x1f\x8b"):
        raise DatasetError(f"{path} is compressed with gzip; decompress it first: gunzip -c FILE > refs.p")
    if content.startswith(b"(lp") and b"\r\n" in content[:64]:
        raise DatasetError(
            f"{path} has Windows line endings, so the pickle was damaged when it was copied as text; copy it "
            "again as a binary file"
        )
    try:
        # The published files were written by Python 2, with text as byte strings, all in ASCII. Bytes that are not
        # UTF-8 become lone surrogates, which `is_text` rejects, so that the error names the row.
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="surrogateescape").load()
    except KeyError as error:
        code = error.args[0] if error.args else "?"
        raise DatasetError(
            f"{path} was rejected because the pickle contains more than plain data (opcode or memo entry "
            f"{code!r}). The file is damaged, or reading it could run code; get the file from its original "
            "source"
        ) from None
    except Exception as error:  # noqa: BLE001 (a damaged pickle can fail in any way)
        raise DatasetError(
            f"{path} is not a complete pickle of plain data ({type(error).__name__}: {error}); copy it again"
        ) from None
