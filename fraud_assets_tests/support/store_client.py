"""A client of the S3 server, and races for its keys."""

from __future__ import annotations

import threading
from collections import Counter

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from fraud_assets.testing.object_store import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, ObjectStore

WRITERS = 8


def client(store: ObjectStore, prefix: str) -> S3Store:
    """A client of obstore, which uses the same library as delta-rs. It retries nothing."""
    return S3Store(
        BUCKET,
        prefix=prefix,
        config={
            "endpoint": store.endpoint,
            "region": REGION,
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "conditional_put": "etag",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def race_for_keys(bucket: S3Store, keys: list[str], writer: str) -> dict[str, str]:
    """Makes `WRITERS` threads put each key at the same moment, if it does not exist; returns the bodies that won."""
    won: dict[str, str] = {}

    def put(number: int) -> None:
        for key in keys:
            barrier.wait(60)
            body = f"{writer}-{number}"
            try:
                obstore.put(bucket, key, body.encode(), mode="create")
            except AlreadyExistsError:
                continue
            # The body is a part of this key. Otherwise a second winner would replace the first.
            won[f"{key} {body}"] = body

    barrier = threading.Barrier(WRITERS)
    threads = [threading.Thread(target=put, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def assert_one_winner_each(bucket: S3Store, keys: list[str], won: dict[str, str]) -> None:
    """Asserts that exactly one writer of each key succeeded and that its body is stored."""
    assert Counter(name.split(" ")[0] for name in won) == Counter(keys)
    for name, body in won.items():
        assert bytes(obstore.get(bucket, name.split(" ")[0]).bytes()).decode() == body
