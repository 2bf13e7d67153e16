"""Settings that hold several `key=value` pairs in one text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_SEPARATORS = {",": "commas", ";": "semicolons"}


@dataclass(frozen=True)
class KeyValuePairs:
    """Reads `key=value` pairs from text; a mapping stays as it is. Annotates the type of a setting.

    Args:
        form: how a pair is written, for the error message.
        key: regular expression that each key matches.
        value: regular expression that each value matches.
        separator: character between two pairs.
    """

    form: str
    key: str = r"[^=]*"
    value: str = r".*"
    separator: str = ","

    def parse(self, text: str) -> dict[str, str]:
        """Returns the pairs of a text, without the blanks around keys and values.

        Raises:
            ValueError: a pair has another form.
        """
        pairs = {}
        for part in filter(None, map(str.strip, text.split(self.separator))):
            key, equals, value = (side.strip() for side in part.partition("="))
            if not equals or not re.fullmatch(self.key, key) or not re.fullmatch(self.value, value, re.DOTALL):
                raise ValueError(f"write it as {self.form}, separated by {_SEPARATORS[self.separator]}")
            pairs[key] = value
        return pairs

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic's documentation on custom types."""
        return core_schema.no_info_before_validator_function(
            lambda value: self.parse(value) if isinstance(value, str) else value, handler(source)
        )
