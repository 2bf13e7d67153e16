"""Facts of a small model."""

from __future__ import annotations

from datetime import timedelta

from fraud_assets.registry.models import TrainingFacts
from fraud_assets_tests.support.synthetic import FIRST, features


def facts():
    return TrainingFacts(20, FIRST, FIRST + timedelta(days=1), 3, 42, features(20), {"threshold": 0.6})
