"""A value has the same pseudonym in every notation; no byte of an unreadable body is kept."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.core import pseudonyms
from fraud_assets.core.bodies import Rejected, parse_json_object
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.pseudonyms import compute_hmac, pseudonymise
from fraud_assets.core.schema import HEADERS
from fraud_assets.errors import SettingError
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.messages import REJECTED, raw_table
from fraud_assets_tests.support.messages import body as transaction

KEY = "0123456789abcdef" * 2
CARD = 4_111_111_111_111_111
PSEUDONYM = hmac.new(KEY.encode(), str(CARD).encode(), hashlib.sha256).hexdigest()


def settings(fields: str = "card", **more: Any) -> Settings:
    return load_settings(_env_file=None, pseudonymise=fields, pseudonym_key=KEY, **more)


def messages(bodies: list[bytes | None], keys: list[Any] | None = None, headers: list[Any] | None = None) -> pa.Table:
    count = len(bodies)
    return pa.table(
        {
            "key": pa.array(keys or [None] * count, pa.binary()),
            "value": pa.array(bodies, pa.binary()),
            "headers": pa.array(headers or [None] * count, HEADERS),
        }
    )


def replace_fields(body: bytes, fields: str = "card", **more: Any) -> bytes:
    return pseudonymise(messages([body]), settings(fields, **more).pseudonym_policy)["value"][0].as_py()


@pytest.mark.parametrize(
    ("body", "fields", "expected"),
    [
        ('{"card": 4111111111111111}', "card", {"card": PSEUDONYM}),
        ('{"card": "4111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"card": "\\u0034111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"c\\u0061rd": "4111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"CARD": 4111111111111111, "Card": 4111111111111111}', "card", {"CARD": PSEUDONYM, "Card": PSEUDONYM}),
        ('{"card": {"number": 4111111111111111, "x": 1}}', "card.number", {"card": {"number": PSEUDONYM, "x": 1}}),
        ('{"card.number": 4111111111111111}', "card.number", {"card.number": PSEUDONYM}),
        ('{"a": [[{"b": 4111111111111111}], {"b": 1, "c": 2}, 3]}', "a.b", {"a": [[{"b": PSEUDONYM}], ..., 3]}),
        ('{"card": [4111111111111111, "4111111111111111"]}', "card", {"card": [PSEUDONYM, PSEUDONYM]}),
        ('{"card": 4111111111111111.0}', "card", {"card": {"number": PSEUDONYM}}),
        ('{"card": 4.111111111111111e15}', "card", {"card": {"number": PSEUDONYM}}),
        ('{"card": {"4111111111111111": true}}', "card", {"card": {"object": ...}}),
        ('{"card": null, "x": "é\\ud800", "n": NaN}', "card", ...),
        ('{"card": ""}', "card", {"card": ""}),
        ('{"card": 4111111111111111, "n": 123456789012345678901234567890}', "card", ...),
        ('{"card": 1, "card2": 4111111111111111}', "card2", {"card": 1, "card2": PSEUDONYM}),
    ],
)
def test_named_fields_become_pseudonyms(body: str, fields: str, expected: Any) -> None:
    result = replace_fields(body.encode(), fields)
    assert str(CARD).encode() not in result
    assert_like(json.loads(result), json.loads(body) if expected is ... else expected, body)


def assert_like(found: Any, expected: Any, body: str) -> None:
    """Asserts that the values are equal. `...` equals anything, and the card number equals its pseudonym."""
    if expected is ...:
        return
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_like(found[name], value, body)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_like(one, other, body)
    else:
        assert found == (PSEUDONYM if expected == CARD else expected) or found != found  # noqa: PLR0124 - NaN


def test_keys_and_headers_have_the_pseudonym_of_the_same_value() -> None:
    rows = messages(
        [b'{"card": 4111111111111111}', None, b""],
        [b"4111111111111111", b"", None],
        [[{"key": "card", "value": b"4111111111111111"}, {"key": "none", "value": None}], None, []],
    )
    found = pseudonymise(rows, settings().pseudonym_policy)
    assert found.schema == rows.schema
    assert found["key"].to_pylist() == [PSEUDONYM.encode(), b"", None]
    assert found["headers"].to_pylist() == [
        [{"key": "card", "value": PSEUDONYM.encode()}, {"key": "none", "value": None}],
        None,
        [],
    ]
    assert found["value"].to_pylist()[1:] == [None, b""]


def test_a_mapped_field_can_be_named_by_its_name_in_the_contract() -> None:
    by_contract = replace_fields(b'{"cc_num": 4111111111111111}', "customer_id", field_mapping="customer_id=cc_num")
    assert json.loads(by_contract) == {"cc_num": PSEUDONYM}


def test_messages_stay_unchanged_if_no_field_is_named() -> None:
    rows = messages([b"anything \xff"], [b"k"])
    assert pseudonymise(rows, load_settings(_env_file=None).pseudonym_policy) is rows


@pytest.mark.parametrize(("body", "reason", "words"), REJECTED)
def test_a_body_with_pseudonyms_is_rejected_for_the_same_reason(body: bytes | None, reason: str, words: str) -> None:
    """Of an unreadable body, neither the value nor the detail keeps any content."""
    chosen = settings("card")
    raw = raw_table([body])
    after = pseudonymise(raw, chosen.pseudonym_policy)
    _, rejected = parse_transactions(after, chosen.contract)
    # Python can neither convert nor write such a long integer, so the body is rejected whatever field it is in.
    reason = "wrong_type" if b"0" * 5000 in (body or b"") else reason
    assert rejected["reason"].to_pylist() == [reason]
    value, detail = after["value"][0].as_py(), rejected["detail"][0].as_py()
    try:
        parse_json_object(body, chosen.max_body_bytes)
    except Rejected:
        if body:
            assert json.loads(value.removeprefix(b"withheld ")) == {
                "reason": reason,
                "bytes": len(body),
                "hmac_sha256": compute_hmac(body, chosen.pseudonym_policy),
            }
            assert f"{len(body)} bytes were withheld" in detail


def test_a_forged_marker_is_not_trusted() -> None:
    forged = b'withheld {"reason": "tombstone", "bytes": 4111111111111111, "hmac_sha256": "4111111111111111"}'
    result = replace_fields(forged)
    assert str(CARD).encode() not in result
    assert json.loads(result.removeprefix(b"withheld "))["reason"] == "invalid_json"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["card", "a.card", "a.b.card"]),
)
def test_the_fast_path_and_the_careful_path_agree(value: Any, path: str) -> None:
    """Values that no path names stay unchanged."""
    payload: dict[str, Any] = {"card": CARD, "a": {"card": CARD, "b": [{"card": CARD}]}, "other": value}
    body = json.dumps(payload).encode()
    fast = json.loads(replace_fields(body, path))
    careful = json.loads(
        pseudonyms._replace_carefully(body, 10**6, pseudonyms._Pseudonyms.of(settings(path).pseudonym_policy))
    )
    assert fast == careful
    assert fast["other"] == json.loads(body)["other"]
    assert json.dumps(fast).count(PSEUDONYM) == 1


def test_pseudonyms_depend_on_the_key() -> None:
    other = load_settings(_env_file=None, pseudonymise="card", pseudonym_key="x" * 32)
    assert compute_hmac(b"1", other.pseudonym_policy) != compute_hmac(b"1", settings().pseudonym_policy)


@pytest.mark.parametrize("key", ["", "short-secret"])
def test_a_missing_or_short_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SettingError, match=r"FRAUD_PSEUDONYM_KEY.*32") as failure:
        load_settings(_env_file=None, pseudonymise="card", pseudonym_key=key)
    assert "short-secret" not in str(failure.value)
    assert KEY not in repr(settings())


@pytest.mark.parametrize("field", ["tx_amount", "amt", "labelled_at"])
def test_a_field_that_the_features_need_cannot_be_named(field: str) -> None:
    with pytest.raises(SettingError, match="FRAUD_PSEUDONYMISE"):
        settings(field, field_mapping="tx_amount=amt")


def test_equal_identifiers_have_equal_pseudonyms_and_bad_ones_stay_bad() -> None:
    chosen = settings("customer_id")
    spellings: list[Any] = [CARD, str(CARD), "", None, 4.5, [1], True]
    raw = raw_table(
        [transaction(transaction_id=number, customer_id=spelling) for number, spelling in enumerate(spellings)]
    )
    valid, rejected = parse_transactions(pseudonymise(raw, chosen.pseudonym_policy), chosen.contract)
    assert valid["customer_id"].to_pylist() == [PSEUDONYM, PSEUDONYM]
    _, before = parse_transactions(raw, chosen.contract)
    assert rejected["reason"].to_pylist() == before["reason"].to_pylist()
