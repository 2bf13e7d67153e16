"""Which column or key of a dropped file is which field of the contract, whatever its capital letters."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fraud_assets.settings import CONTRACT_FIELDS, Settings

LABEL_NAMES = ("is_fraud", "tx_fraud")


def payload_names(
    columns: Collection[str], settings: Settings, present: Collection[str] = frozenset()
) -> dict[str, str]:
    """Name in the body of each column: the payload's for a contract field, else its own.

    Args:
        columns: names of columns or keys. Of several that differ by capital letters only, none is taken for a field.
        settings: the field mapping.
        present: paths of FRAUD_FIELD_MAPPING that are there already, within objects.
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


def label_names(settings: Settings) -> list[str]:
    """The names under which a row may have its label, the preferred first."""
    return list(dict.fromkeys([settings.contract.payload_field("is_fraud"), *LABEL_NAMES]))


def labelled_at_names(settings: Settings) -> list[str]:
    """The names under which a row may have the time of its label, the preferred first."""
    return list(dict.fromkeys([settings.contract.payload_field("labelled_at"), "labelled_at"]))


def first_of(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """The first wanted name that is there: as it is written, else whatever its capital letters."""
    by_case = {name.lower(): name for name in reversed(list(names))}
    return next(
        (found for name in wanted if (found := name if name in names else by_case.get(name.lower())) is not None), None
    )
