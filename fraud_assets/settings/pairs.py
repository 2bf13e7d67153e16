"""Parses settings that consist of several `key=value` pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_SEPARATORS = {",": "commas", ";": "semicolons"}


@dataclass(frozen=True)
class KeyValuePairs:
    """Parses `key=value` pairs from text. It annotates the type of a setting; a mapping passes unchanged.

    Args:
        form: The form of a pair, for the error message.
        key: Regular expression that each key must match.
        value: Regular expression that each value must match.
        separator: Character between two pairs.
    """

    form: str
    key: str = r"[^=]*"
    value: str = r".*"
    separator: str = ","

    def parse(self, text: str) -> dict[str, str]:
        """Returns the pairs of a text. White space around keys and values is removed.

        Raises:
            ValueError: A pair has another form.
        """
        pairs = {}
        for part in filter(None, map(str.strip, text.split(self.separator))):
            key, equals, value = (side.strip() for side in part.partition("="))
            if not equals or not re.fullmatch(self.key, key) or not re.fullmatch(self.value, value, re.DOTALL):
                raise ValueError(f"write it as {self.form}, separated by {_SEPARATORS[self.separator]}")
            pairs[key] = value
        return pairs

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Returns the validator of the annotated type; see pydantic's documentation on custom types."""
        return core_schema.no_info_before_validator_function(
            lambda value: self.parse(value) if isinstance(value, str) else value, handler(source)
        )
