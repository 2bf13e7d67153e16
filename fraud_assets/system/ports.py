"""Finds free ports on 127.0.0.1 for servers that tests, proofs and demos start."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Sequence

from fraud_assets.errors import FraudAssetsError

# The system assigns only higher (ephemeral) ports to connections, so a server that is down keeps its port.
_PORTS = (20_000, 32_000)


def find_free_ports(names: Sequence[str], taken: Collection[int] = ()) -> dict[str, int]:
    """Finds a free port on 127.0.0.1 for each name, below the ephemeral ports of the system.

    Args:
        names: The keys of the result.
        taken: Ports that must not be used.

    Returns:
        A port by name.

    Raises:
        FraudAssetsError: Too few ports are free.
    """
    ports: dict[str, int] = {}
    candidates = random.SystemRandom().sample(range(*_PORTS), 200)
    for candidate in candidates:
        if len(ports) == len(names):
            break
        if candidate not in taken and is_free(candidate):
            ports[names[len(ports)]] = candidate
    if len(ports) < len(names):
        raise FraudAssetsError(f"127.0.0.1 has too few free ports between {_PORTS[0]} and {_PORTS[1]}. Try again.")
    return ports


def is_free(port: int) -> bool:
    """Returns whether a server could listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        # Java sets this option, too: a port with connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
