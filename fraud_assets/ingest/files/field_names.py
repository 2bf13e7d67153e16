"""Matches the columns or keys of a dropped file to the fields of the contract, ignoring case."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fraud_assets.settings import CONTRACT_FIELDS, Settings

LABEL_NAMES = ("is_fraud", "tx_fraud")


def map_payload_names(
    columns: Collection[str], settings: Settings, present: Collection[str] = frozenset()
) -> dict[str, str]:
    """Returns the key of each column in the message body: the payload name of a contract field, else its own name.

    Args:
        columns: names of columns or keys. If several of them differ only in case, none is matched to a field.
        settings: the field mapping.
        present: paths of FRAUD_FIELD_MAPPING that already exist within objects.
    """
    names = {column: column for column in columns}
    by_case: dict[str, list[str]] = {}
    for column in columns:
        by_case.setdefault(column.lower(), []).append(column)
    for field in CONTRACT_FIELDS:
        payload = settings.contract.payload_field(field)
        if payload in names or payload in present:
            continue
        for wanted in (payload, field):
            found = by_case.get(wanted.lower(), [])
            if found:
                if len(found) == 1:
                    names[found[0]] = payload
                break
    return names


def find_label_names(settings: Settings) -> list[str]:
    """Returns the names that the label of a row can have, in order of preference."""
    return list(dict.fromkeys([settings.contract.payload_field("is_fraud"), *LABEL_NAMES]))


def find_labelled_at_names(settings: Settings) -> list[str]:
    """Returns the names that the time of a label can have, in order of preference."""
    return list(dict.fromkeys([settings.contract.payload_field("labelled_at"), "labelled_at"]))


def find_first(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """Returns the first wanted name among `names`, with its exact spelling if possible, else ignoring case."""
    by_case = {name.lower(): name for name in reversed(list(names))}
    return next(
        (found for name in wanted if (found := name if name in names else by_case.get(name.lower())) is not None), None
    )
