"""Text from outside, such as file names, in a form that is safe on a terminal and in a log."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""The text with everything escaped that does not print: control characters, line ends, bytes that are not UTF-8.

    Args:
        text: a string, or anything that `str` turns into one, such as a path.

    Returns:
        The text on one line; for example, a line end becomes `\n`, the escape character `\x1b`, and the byte 0xFF of
        a file name `\xff`.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in whole)


def _escaped(letter: str) -> str:
    # Python keeps a byte of a file name that is not UTF-8 as one of these code points (`surrogateescape`).
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
