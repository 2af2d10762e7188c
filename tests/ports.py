"""Ports for the servers that tests start."""

import random
import socket

# Below the range from which the system gives ports to whoever does not choose: Ray, gloo and
# other servers take theirs from there meanwhile.
_RANGE = range(20_000, 32_000)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports on which nothing listens.

    Args:
        count: how many.
        host: address on which they are free.
    """
    # Not the seeded generator: tests in two processes would then try the same ones.
    tried = random.SystemRandom().sample(_RANGE, len(_RANGE))
    free = (port for port in tried if _is_free(host, port))
    return [next(free) for _ in range(count)]


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens."""
    return free_ports(1, host)[0]


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
