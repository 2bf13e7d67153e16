"""Formats texts for people: escapes external text, such as file names, and counts in words."""

from __future__ import annotations


def format_count(number: int, noun: str) -> str:
    """Formats a number with its noun, such as "1 message" or "2,000 messages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def escape_unprintable(text: object) -> str:
    r"""Escapes all unprintable characters: control characters, line ends and bytes that are not UTF-8.

    Args:
        text: A string, or any object that `str` converts to one, such as a path.

    Returns:
        The text on one line. For example, a line end becomes `\n`, the escape character `\x1b`, and the byte 0xFF of
        a file name `\xff`.
    """
    characters = str(text)
    if characters.isprintable():
        return characters
    return "".join(character if character.isprintable() else _escape_character(character) for character in characters)


def _escape_character(character: str) -> str:
    # Python stores a byte of a file name that is not UTF-8 as one of these code points (`surrogateescape`).
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
