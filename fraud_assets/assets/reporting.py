"""How assets tell a person that something failed: one sentence, no stack trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from fraud_assets.errors import FraudAssetsError


@contextmanager
def failures_in_words() -> Iterator[None]:
    """Turns errors that a person can act upon into a Dagster `Failure` with that sentence."""
    try:
        yield
    except FraudAssetsError as error:
        raise dg.Failure(description=str(error), metadata={"error": type(error).__name__}) from None
