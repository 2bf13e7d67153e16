"""Two processes train at the same time on a new model registry."""

from fraud_assets_tests.support.models import assert_first_trainings_are_quiet


def test_concurrent_first_trainings_succeed_and_print_nothing(tmp_path):
    assert_first_trainings_are_quiet(tmp_path, 2)
