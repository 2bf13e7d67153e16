"""Two first trainings at the same time, on a new model registry."""

from fraud_assets_tests.support.models import assert_first_trainings_are_quiet


def test_first_trainings_do_not_race(tmp_path):
    assert_first_trainings_are_quiet(tmp_path, 2)
