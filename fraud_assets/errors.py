"""What goes wrong by the user's hand or the world's, told in one sentence each.

Every message names the setting or file, the value it has, and what to do. The command line prints it
without a stack trace and exits with `exit_code`; assets raise it as a Dagster `Failure`.
"""


class FraudAssetsError(Exception):
    """Base of all errors that a person can act upon."""

    exit_code = 1


class SettingError(FraudAssetsError):
    """A setting has a value that cannot work."""

    exit_code = 2


class BrokerError(FraudAssetsError):
    """The broker or a topic cannot be reached or read."""


class MessagesLostError(BrokerError):
    """The broker no longer has messages that were not landed yet."""


class LakeError(FraudAssetsError):
    """A table cannot be read or written."""


class NotEnoughDataError(FraudAssetsError):
    """Training or evaluation needs more rows than the lake holds."""


class NoChampionError(FraudAssetsError):
    """No model version carries the champion alias yet."""
