"""Free ports of 127.0.0.1, for servers that tests, proofs and demos start."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Sequence

from fraud_assets.errors import FraudAssetsError

# Below the ports that the system gives to outgoing connections, so that nobody takes one while its server is down.
_PORTS = (20_000, 32_000)


def free_ports(names: Sequence[str], taken: Collection[int] = ()) -> dict[str, int]:
    """A free port of 127.0.0.1 for each name, one that the system gives to nobody while its server is down.

    Raises:
        FraudAssetsError: there are too few.
    """
    ports: dict[str, int] = {}
    candidates = random.SystemRandom().sample(range(*_PORTS), 200)
    for candidate in candidates:
        if len(ports) == len(names):
            break
        if candidate not in taken and is_free(candidate):
            ports[names[len(ports)]] = candidate
    if len(ports) < len(names):
        raise FraudAssetsError(f"No free port of 127.0.0.1 between {_PORTS[0]} and {_PORTS[1]} was found. Try again.")
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen at this port of 127.0.0.1."""
    with socket.socket() as probe:
        # As Java binds it: a port whose last connections are not quite forgotten is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
