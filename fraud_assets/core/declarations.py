"""The feature file: what a user declares, validated.

A feature file names entities, aggregates and inputs. An *aggregate* is a stored column, computed from the transactions
of an entity. An *input* is computed from the columns of its own row when the row is scored. The model reads the inputs
and aggregates that `model` lists.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fraud_assets.errors import FeatureFileError

SECOND = 1_000_000
"""One second in microseconds, the unit of all durations here."""

TRANSACTION_FIELDS = ("customer_id", "terminal_id", "tx_amount")
"""The columns of a transaction that aggregates and inputs can name."""

SHIPPED_FILES = ("default", "book")
"""The feature files of the package."""

_UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3_600 * SECOND, "d": 86_400 * SECOND}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


def parse_duration(text: object) -> int:
    """Parses a duration such as "15m", "1h" or "30d" to microseconds.

    Raises:
        ValueError: The text has another form.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('write a number and a unit (s, m, h or d), such as "15m" or "30d"')
    return int(match[1]) * _UNITS[match[2]]


def format_duration(microseconds: int) -> str:
    """Formats a duration in the largest unit that divides it, such as "30 days"."""
    names = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
    for unit, name in names.items():
        count, rest = divmod(microseconds, _UNITS[unit])
        if not rest and count:
            return f"{count} {name}{'s' * (count > 1)}"
    return "0 seconds"


Duration = Annotated[int, BeforeValidator(parse_duration)]


class Declaration(BaseModel):
    """A part of a feature file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Prior(Declaration):
    """A value toward which a mean or share is shrunk, with the weight of that many transactions."""

    value: float
    weight: float = Field(gt=0)


class Condition(Declaration):
    """A limit on a column or input of the earlier transaction itself."""

    value_of: str
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> Condition:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self


class WindowAggregate(Declaration):
    """An aggregate over the transactions of an entity in a window that ends at the transaction, or `delay` before."""

    function: Literal["count", "sum", "mean", "max", "min", "deviation", "distinct"]
    entity: str
    over: Duration
    of: str | None = None
    delay: Duration = 0
    with_itself: bool = True
    known: Literal["genuine", "fraud"] | None = None
    where: Condition | None = None
    prior: Prior | None = None
    empty: float | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> WindowAggregate:
        if (self.of is None) != (self.function == "count"):
            raise ValueError("count takes no `of`; every other function needs it")
        if self.known and self.function not in ("count", "mean"):
            raise ValueError("`known` goes with count and mean")
        if self.known and (self.where or self.delay):
            raise ValueError("`known` cannot be combined with `where` or `delay`")
        if self.where and self.function != "count":
            raise ValueError("`where` goes with count")
        if self.prior and not (self.function == "mean" and self.known):
            raise ValueError("`prior` goes with the mean of known transactions, and with fraud_share")
        return self


class LabelAggregate(Declaration):
    """An aggregate over what was known about the earlier transactions of an entity."""

    function: Literal["fraud_count", "known_count", "fraud_share", "fraud_streak", "seconds_since_fraud"]
    entity: str
    over: Duration
    delay: Duration = 0
    last: int | None = Field(None, ge=1, le=1000)
    prior: Prior | None = None
    empty: float | None = None

    @model_validator(mode="after")
    def _check_combination(self) -> LabelAggregate:
        if (self.last or self.prior) and self.function != "fraud_share":
            raise ValueError("`last` and `prior` go with fraud_share")
        if self.last and (self.prior or self.delay):
            raise ValueError("`last` cannot be combined with `prior` or `delay`")
        if self.delay and self.function in ("fraud_streak", "seconds_since_fraud"):
            raise ValueError("`delay` goes with fraud_count, known_count and fraud_share")
        return self


class TimeSincePrevious(Declaration):
    """The seconds since the entity's previous transaction within a window."""

    function: Literal["seconds_since_previous"]
    entity: str
    over: Duration
    empty: float | None = None


Aggregate = Annotated[WindowAggregate | LabelAggregate | TimeSincePrevious, Field(discriminator="function")]


class Clip(Declaration):
    """Limits of a value. `quantile` is the quantile of the training rows that replaces smaller values."""

    of: str
    below: float | None = None
    above: float | None = None
    quantile: float | None = Field(None, gt=0, lt=1)


class Input(Declaration):
    """One function of the columns of a row. Exactly one key is given."""

    ratio: tuple[str, str] | None = None
    difference: tuple[str, str] | None = None
    logarithm: str | None = None
    saturation: str | None = None
    clip: Clip | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Input:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of ratio, difference, logarithm, saturation and clip")
        return self

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the columns that the function reads."""
        if self.clip:
            return (self.clip.of,)
        return self.ratio or self.difference or tuple(filter(None, (self.logarithm, self.saturation)))


class FeatureFile(Declaration):
    """A validated feature file."""

    model: tuple[str, ...] = Field(min_length=1)
    entities: dict[str, tuple[str, ...]]
    aggregates: dict[str, Aggregate] = {}
    inputs: dict[str, Input] = {}

    @model_validator(mode="after")
    def _check_names(self) -> FeatureFile:
        names = [*self.entities, *self.aggregates, *self.inputs]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name: use lower-case letters, digits and _, at most 60 characters")
        for name in {name for name in names if names.count(name) > 1 or name in TRANSACTION_FIELDS}:
            raise ValueError(f"the name {name!r} is used twice")
        known = (*TRANSACTION_FIELDS, *self.aggregates, *self.inputs)
        for user, used in self._find_uses():
            if used not in known:
                raise ValueError(f"{user} names {used!r}, which is neither a column nor declared")
        for name, aggregate in self.aggregates.items():
            if aggregate.entity not in self.entities:
                raise ValueError(f"{name} names the entity {aggregate.entity!r}, which is not declared")
        for name in (*self.aggregates, *self.inputs):
            self._check_cycle(name, ())
        for name in self.aggregates:
            if fitted := self._find_fitted(name):
                raise ValueError(
                    f"{name} depends on {fitted!r}, whose quantile is fitted with each model; a stored aggregate cannot"
                )
        return self

    def _find_fitted(self, name: str) -> str:
        """Returns an input with a fitted limit that an entry depends on, or an empty string."""
        declared = self.inputs.get(name)
        if declared and declared.clip and declared.clip.quantile is not None:
            return name
        return next(filter(None, (self._find_fitted(operand) for operand in self.find_operands(name))), "")

    def _find_uses(self) -> Iterator[tuple[str, str]]:
        """Yields each use of a column: the name of the user and the name of the column."""
        yield from (("model", name) for name in self.model)
        yield from ((entity, name) for entity, fields in self.entities.items() for name in fields)
        for name in (*self.aggregates, *self.inputs):
            yield from ((name, operand) for operand in self.find_operands(name))

    def find_operands(self, name: str) -> tuple[str, ...]:
        """Returns the columns, aggregates and inputs that an entry reads directly; none for a column."""
        if name in self.inputs:
            return self.inputs[name].operands
        aggregate = self.aggregates.get(name)
        if not isinstance(aggregate, WindowAggregate):
            return ()
        return tuple(filter(None, (aggregate.of, aggregate.where.value_of if aggregate.where else None)))

    def _check_cycle(self, name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"{' -> '.join((*path, name))} is a cycle")
        for operand in self.find_operands(name):
            self._check_cycle(operand, (*path, name))

    def hash_definition(self, name: str) -> str:
        """Returns the hash of what a name means: its entry, and the entries that it reads, without their names.

        Returns:
            16 hexadecimal digits. Two entries with the same hash have the same values.
        """
        if name in TRANSACTION_FIELDS:
            return name
        operands = [self.hash_definition(operand) for operand in self.find_operands(name)]
        if name in self.inputs:
            declared = self.inputs[name]
            meaning: dict[str, Any] = {"input": sorted(declared.model_fields_set)}
            meaning |= declared.clip.model_dump(exclude={"of"}) if declared.clip else {}
        else:
            aggregate = self.aggregates[name]
            meaning = aggregate.model_dump(mode="json", exclude={"of": True, "where": {"value_of"}})
            meaning["entity"] = self.entities[aggregate.entity]
        return sha256(json.dumps([meaning, operands], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def reach(self) -> int:
        """Age in microseconds of the oldest transaction that a value can depend on directly."""
        return max(
            (aggregate.over + getattr(aggregate, "delay", 0) for aggregate in self.aggregates.values()), default=0
        )


def read_shipped_file(name: str) -> FeatureFile:
    """Reads a feature file of the package: `default`, or the handbook's `book`."""
    file = resources.files("fraud_assets.core").joinpath("feature_sets", f"{name}.toml")
    return read_feature_file(file.read_text(encoding="utf-8"), f"{name}.toml")


def read_feature_file(text: str, source: str) -> FeatureFile:
    """Parses and validates a feature file.

    Args:
        text: The text of the file, in TOML.
        source: The name of the file, for messages.

    Raises:
        FeatureFileError: The text is not TOML, or an entry is invalid. The message names the entry, its value and the
            fix.
    """
    try:
        return FeatureFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise FeatureFileError(f"{source} is not valid TOML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        # The function is part of pydantic's path of a discriminated entry.
        path = ".".join(str(part) for part in first["loc"] if part not in _FUNCTIONS)
        reason = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict) or not path else f" is {first['input']!r}"
        raise FeatureFileError(f"{source}: {path or 'the file'}{value}: {reason}.") from None


_FUNCTIONS = {
    function
    for kind in (WindowAggregate, LabelAggregate, TimeSincePrevious)
    for function in kind.model_fields["function"].annotation.__args__  # type: ignore[union-attr]
}
