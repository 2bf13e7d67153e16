"""Makes bad messages, which the parser must reject without failing, from valid messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fraud_assets.kafka.producer import Message
from fraud_assets.settings import Settings

BodyChange = Callable[[bytes, Settings], bytes]


def mix_in_bad_messages(messages: Iterable[Message], count: int, every: int, settings: Settings) -> Iterator[Message]:
    """Yields the messages and, after every `every`-th transaction, a bad one, until there are `count` bad ones."""
    kinds = list(KINDS.values())
    seen = made = 0
    for message in messages:
        yield message
        if made < count and message.topic == settings.transactions_topic:
            seen += 1
            if seen % every == 0:
                yield Message(message.topic, None, kinds[made % len(kinds)](message.value, settings))
                made += 1


def _with(field: str, value: Any) -> BodyChange:
    """Returns a function that replaces one field of a body.

    It also replaces the id, so that the message does not count as repeated.
    """

    def change(body: bytes, settings: Settings) -> bytes:
        message = json.loads(body)
        identity = settings.contract.payload_field("transaction_id")
        message[identity] = f"{message[identity]}-bad-{field}"
        message[settings.contract.payload_field(field)] = value
        return json.dumps(message).encode()

    return change


def _without_amount(body: bytes, settings: Settings) -> bytes:
    message = json.loads(body)
    message[settings.contract.payload_field("transaction_id")] = (
        f"{message[settings.contract.payload_field('transaction_id')]}-bad"
    )
    del message[settings.contract.payload_field("tx_amount")]
    return json.dumps(message).encode()


def _amount_twice(body: bytes, settings: Settings) -> bytes:
    field = json.dumps(settings.contract.payload_field("tx_amount")).encode()
    identity = json.dumps(settings.contract.payload_field("transaction_id")).encode()
    return b'{%b:"bad-twice",%b:1.00,%b:' % (identity, field, field) + b"9999.99," + body.lstrip().removeprefix(b"{")


KINDS: dict[str, BodyChange] = {
    "truncated": lambda body, settings: body[: len(body) // 2],
    "amount_nan": _with("tx_amount", float("nan")),
    "amount_negative": _with("tx_amount", -12.5),
    "amount_boolean": _with("tx_amount", True),
    "amount_missing": _without_amount,
    "far_future": _with("tx_datetime", "9000-01-01T00:00:00Z"),
    "time_nonsense": _with("tx_datetime", "yesterday"),
    "customer_null": _with("customer_id", None),
    "empty": lambda body, settings: b"",
    "not_utf8": lambda body, settings: b"\xff\xfe" + body,
    "not_an_object": lambda body, settings: b"[%b]" % body,
    "keys_twice": _amount_twice,
    "repeated_id": lambda body, settings: body,
}
"""Functions that make a valid body bad, by kind. `repeated_id` sends a valid message a second time."""
