"""Computes the values of a feature file for transactions in memory, with NumPy only.

Every engine calls this evaluation. The value of a row depends only on the transactions and labels that its windows
contain, not on how the rows are split into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fraud_assets.core.declarations import (
    Aggregate,
    FeatureFile,
    Input,
    LabelAggregate,
    TimeSincePrevious,
    WindowAggregate,
)
from fraud_assets.core.known_labels import KnownLabels, Labels
from fraud_assets.core.timeline import Timeline
from fraud_assets.core.window_values import (
    ExactSums,
    count_distinct,
    divide,
    find_deviations,
    find_extremes,
)


@dataclass(frozen=True)
class LabelColumns:
    """Labels of the transactions, in landing order. All arrays have shape (labels,).

    Attributes:
        row: Row of the labeled transaction; int64.
        fraud: Whether the label says fraud; bool.
        time: Time in microseconds from which on the label was known; int64.
    """

    row: np.ndarray
    fraud: np.ndarray
    time: np.ndarray


@dataclass
class DeclaredValues:
    """Values of the columns, aggregates and inputs of a feature file, each computed once when it is first read.

    Attributes:
        file: The declarations.
        columns: The fields of the transactions, in landing order; each of shape (rows,).
        time: Time of each transaction in microseconds; int64, shape (rows,).
        labels: What is known about them.
        feedback_delay: Age in microseconds from which on a transaction without a label counts as genuine.
        new: Rows to compute; int64. The others are history, with aggregates in `stored`.
        stored: Aggregates of the history; float64, shape (rows,).
        quantiles: Limits of the inputs of a model, from `fit_quantiles`.
    """

    file: FeatureFile
    columns: Mapping[str, np.ndarray]
    time: np.ndarray
    labels: LabelColumns
    feedback_delay: int
    new: np.ndarray
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)
    quantiles: dict[str, float] = field(default_factory=dict)
    _values: dict[str, np.ndarray] = field(default_factory=dict)
    _known: dict[str, KnownLabels] = field(default_factory=dict)

    def compute(self, name: str) -> np.ndarray:
        """Returns a column, aggregate or input: shape (rows,). History without a stored value is NaN."""
        if name not in self._values:
            if name in self.file.aggregates:
                self._values[name] = self._compute_aggregate(name, self.file.aggregates[name])
            elif name in self.file.inputs:
                self._values[name] = self._compute_input(name, self.file.inputs[name])
            else:
                return self.columns[name]
        return self._values[name]

    def fit_quantiles(self, rows: np.ndarray) -> None:
        """Fits the limits of the inputs on training rows: bool, shape (rows,)."""
        for name, declared in self.file.inputs.items():
            if declared.clip and declared.clip.quantile is not None:
                values = self.compute(declared.clip.of)[rows]
                self.quantiles[name] = float(np.nanquantile(values, declared.clip.quantile))
        for name in self.file.inputs:
            self._values.pop(name, None)

    def compute_model_inputs(self) -> np.ndarray:
        """Returns the inputs of the model for the new rows: float64, shape (new rows, inputs)."""
        return np.column_stack([self.compute(name)[self.new] for name in self.file.model]).astype(np.float64)

    def _compute_aggregate(self, name: str, aggregate: Aggregate) -> np.ndarray:
        known = self._order(aggregate.entity)
        at = known.timeline.places[self.new]
        if isinstance(aggregate, LabelAggregate):
            values = _compute_labels(known, at, aggregate)
        elif isinstance(aggregate, TimeSincePrevious):
            values = _find_seconds_since_previous(known.timeline, at, aggregate.over)
        else:
            values = self._compute_window(known, at, aggregate)
        values = values.astype(np.float64)
        if aggregate.empty is not None:
            values = np.where(np.isnan(values), aggregate.empty, values)
        result = self.stored[name].copy() if name in self.stored else np.full(len(self.time), np.nan)
        result[self.new] = values
        return result

    def _order(self, entity: str) -> KnownLabels:
        """Returns the timeline of an entity with its labels."""
        if entity not in self._known:
            fields = [self.columns[name] for name in self.file.entities[entity]]
            numbers = np.zeros(len(self.time), np.int64)
            for values in fields:
                codes = np.unique(values, return_inverse=True)[1]
                numbers = np.unique(numbers * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
            timeline = Timeline.build(numbers.astype(np.int64), self.time, np.arange(len(self.time)))
            labels = self.labels
            landing = np.arange(len(labels.row))
            sorted_labels = Labels.build(timeline, labels.row, labels.fraud, labels.time, landing)
            self._known[entity] = KnownLabels(timeline, sorted_labels, self.feedback_delay)
        return self._known[entity]

    def _compute_window(self, known: KnownLabels, at: np.ndarray, aggregate: WindowAggregate) -> np.ndarray:
        timeline, fraud = known.timeline, aggregate.known == "fraud"
        if aggregate.known and aggregate.function == "count":
            return known.count(at, aggregate.over, 0, fraud=fraud)
        if aggregate.known:
            assert aggregate.of is not None
            prior, weight = (aggregate.prior.value, aggregate.prior.weight) if aggregate.prior else (0.0, 0.0)
            of = self.compute(aggregate.of)[timeline.order].astype(np.float64)
            return known.mean(at, aggregate.over, of, fraud=fraud, prior=prior, weight=weight)
        begin, end = timeline.find_window(at, aggregate.over, aggregate.delay, with_itself=aggregate.with_itself)
        if aggregate.function == "count":
            return self._count(timeline, begin, end, aggregate)
        assert aggregate.of is not None
        values = self.compute(aggregate.of)[timeline.order]
        if aggregate.function == "distinct":
            codes = np.unique(values, return_inverse=True)[1]
            return count_distinct(codes + timeline.entity * (int(codes.max(initial=0)) + 1), begin, end)
        values = values.astype(np.float64)
        if aggregate.function in ("max", "min"):
            return find_extremes(values, begin, end, largest=aggregate.function == "max")
        if aggregate.function == "deviation":
            return find_deviations(values, begin, end)
        sums = ExactSums.build(values)
        return sums.sum(begin, end) if aggregate.function == "sum" else sums.mean(begin, end)

    def _count(self, timeline: Timeline, begin: np.ndarray, end: np.ndarray, aggregate: WindowAggregate) -> np.ndarray:
        if aggregate.where is None:
            return end - begin
        where = aggregate.where
        values = self.compute(where.value_of)[timeline.order].astype(np.float64)
        meets = values > where.above if where.above is not None else values < (where.below or 0.0)
        counted = ExactSums.build(meets.astype(np.float64)).sum(begin, end)
        # A row without the value was not computed: the count is unknown, not 0.
        unknown = ExactSums.build(np.where(np.isnan(values), 1.0, np.nan)).count(begin, end)
        return np.where(unknown > 0, np.nan, counted)

    def _compute_input(self, name: str, declared: Input) -> np.ndarray:
        operands = [self.compute(operand).astype(np.float64) for operand in declared.operands]
        if declared.ratio:
            return divide(*operands)
        if declared.difference:
            return operands[0] - operands[1]
        (value,) = operands
        if declared.logarithm:
            return np.log1p(np.maximum(value, 0.0))
        if declared.saturation:
            return value / (value + 1.0)
        assert declared.clip is not None
        clip = declared.clip
        low = clip.below
        if clip.quantile is not None:
            low = self.quantiles[name]
        return np.clip(value, low, clip.above)


def _compute_labels(known: KnownLabels, at: np.ndarray, aggregate: LabelAggregate) -> np.ndarray:
    if aggregate.function == "fraud_streak":
        return known.count_streak(at, aggregate.over)
    if aggregate.function == "seconds_since_fraud":
        return known.find_age_of_newest_fraud(at, aggregate.over)
    if aggregate.last:
        return known.share_of_last(at, aggregate.last, aggregate.over)
    frauds = known.count(at, aggregate.over, aggregate.delay, fraud=True)
    if aggregate.function == "fraud_count":
        return frauds
    counted = known.count(at, aggregate.over, aggregate.delay, fraud=None)
    if aggregate.function == "known_count":
        return counted
    prior, weight = (aggregate.prior.value, aggregate.prior.weight) if aggregate.prior else (0.0, 0.0)
    return divide(frauds + prior * weight, counted + weight)


def _find_seconds_since_previous(timeline: Timeline, at: np.ndarray, over: int) -> np.ndarray:
    begin, end = timeline.find_window(at, over, with_itself=False)
    seconds = np.full(len(at), np.nan)
    found = end > begin
    seconds[found] = (timeline.time[at[found]] - timeline.time[end[found] - 1]) / 1e6
    return seconds
