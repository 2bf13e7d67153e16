"""Commit conflicts: a handle cannot commit to a source partition to which another writer committed first."""

from __future__ import annotations

import pytest

from fraud_assets.core.schema import raw_transactions
from fraud_assets.errors import CommitConflictError, LakeError
from fraud_assets.lake.append import MAX_CONFLICTS, commit_append, retry_conflicts
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake, read
from fraud_assets_tests.support.landed import bodies, land

PARTITION = SourcePartition("other", "topic-id", 0)


def test_the_second_of_two_commits_to_one_source_partition_is_refused(lake: Lake) -> None:
    land(lake, bodies(3))
    rows = read(lake.open(raw_transactions)).cast(raw_transactions.schema)
    first, second = lake.open(raw_transactions), lake.open(raw_transactions)
    commit_append(first, raw_transactions, rows, {PARTITION: 2})
    with pytest.raises(CommitConflictError):
        commit_append(second, raw_transactions, rows, {PARTITION: 2})
    assert read_row_count(lake.open(raw_transactions)) == 6
    assert committed_offset(lake.open(raw_transactions), PARTITION) == 2


def test_commits_to_different_source_partitions_do_not_conflict(lake: Lake) -> None:
    land(lake, bodies(3))
    rows = read(lake.open(raw_transactions)).cast(raw_transactions.schema)
    first, second = lake.open(raw_transactions), lake.open(raw_transactions)
    commit_append(first, raw_transactions, rows, {PARTITION: 2})
    commit_append(second, raw_transactions, rows, {PARTITION._replace(partition=1): 2})
    assert read_row_count(lake.open(raw_transactions)) == 9


def test_a_conflict_is_retried_with_a_new_handle(lake: Lake) -> None:
    land(lake, bodies(3))
    rows = read(lake.open(raw_transactions)).cast(raw_transactions.schema)
    offsets = []

    @retry_conflicts
    def append() -> None:
        handle = lake.open(raw_transactions)
        offsets.append(committed_offset(handle, PARTITION))
        if len(offsets) == 1:
            commit_append(lake.open(raw_transactions), raw_transactions, rows, {PARTITION: 2})
        commit_append(handle, raw_transactions, rows, {PARTITION: 5})

    append()
    assert offsets == [-1, 2]
    assert read_row_count(lake.open(raw_transactions)) == 9


def test_repeated_conflicts_end_with_an_error() -> None:
    attempts = []

    @retry_conflicts
    def append() -> None:
        attempts.append(1)
        raise CommitConflictError("Another writer committed to table t first.")

    with pytest.raises(LakeError, match=f"committed to table t first.*{MAX_CONFLICTS} times in a row"):
        append()
    assert len(attempts) == MAX_CONFLICTS
