"""How assets tell a person what they did, and in one sentence that something failed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from fraud_assets.errors import FraudAssetsError, disk_fault


@contextmanager
def failures_in_words() -> Iterator[None]:
    """Turns errors that a person can act upon into a Dagster `Failure` with that sentence."""
    try:
        yield
    except (FraudAssetsError, OSError) as error:
        reason = disk_fault(error) if isinstance(error, OSError) else error
        if reason is None:
            raise
        raise dg.Failure(description=str(reason), metadata={"error": type(reason).__name__}) from None


def materialized(
    context: dg.AssetExecutionContext, name: str, metadata: Mapping[str, Any]
) -> Iterator[dg.MaterializeResult]:
    """Reports a table as written, also where only its sister was asked for and both are written together."""
    if dg.AssetKey(name) in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=name, metadata=metadata)
    else:
        context.log_event(dg.AssetMaterialization(name, metadata=metadata))
