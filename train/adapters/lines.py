"""Lines of text files, plain or gzip, one at a time. Knows nothing of what they hold."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from train.adapters.adapter import LeftOut

_MAX_LINE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# More lines that are not UTF-8 than this are no accidents: the file has another encoding, and what
# would be left out is every text with an umlaut or an accent.
_MAX_NOT_UTF8, _MAX_NOT_UTF8_SHARE = 20, 0.01


def read_lines(path: Path, left_out: LeftOut) -> Iterator[tuple[int, str]]:
    """Returns number (from 1) and text of each line that is not empty, without its line end.

    Lines that are not UTF-8 or longer than 1 MiB are left out and counted.

    Raises:
        ValueError: the file cannot be read, is damaged, is UTF-16 or, as many of its lines say
            (which is known at its end), of another encoding, or holds nothing.
    """
    with reading(path), _opened(path) as stream:
        number = num_not_utf8 = 0
        while line := stream.readline(_MAX_LINE_BYTES):
            number += 1
            if number == 1 and line.startswith(_UTF16_MARKS):
                raise ValueError(f"{path}: is UTF-16, must be UTF-8")
            if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                left_out.add("longer than 1 MiB", path, number)
                while (rest := stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                continue
            line = line.removeprefix(_UTF8_MARK) if number == 1 else line
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                left_out.add("not UTF-8", path, number)
                num_not_utf8 += 1
                continue
            if text:
                yield number, text
    if not number:
        raise ValueError(f"{path}: is empty")
    if num_not_utf8 > max(_MAX_NOT_UTF8, _MAX_NOT_UTF8_SHARE * number):
        raise ValueError(
            f"{path}: {num_not_utf8} of {number} lines are not UTF-8: convert the file first; one "
            "in Latin-1 with `iconv -f latin1 -t utf-8`"
        )


def header_error(path: Path, expected: str, found: str) -> ValueError:
    """Returns the error for a file whose columns are not those of its format.

    Args:
        path: of the file.
        expected: what the format has.
        found: what is different in the first line, without its content: it may be anyone's search.
    """
    return ValueError(f"{path}: expected {expected}; its first line {found}")


def num_columns(fields: Sequence[str]) -> str:
    """Returns how many columns a line has, as `header_error` says it."""
    return f"has {len(fields)} column{'' if len(fields) == 1 else 's'}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong with a file into a ValueError that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: gzip file is cut short or damaged ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def starts_with(path: Path, mark: bytes) -> bool:
    """Returns whether a file starts with some bytes."""
    with path.open("rb") as stream:
        return stream.read(len(mark)) == mark


def _opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if starts_with(path, _GZIP) else path.open("rb")
