"""moto's server, in a thread of this process."""

from __future__ import annotations

import atexit
import logging
from functools import cache

from moto.server import ThreadedMotoServer

__all__ = ("moto_endpoint",)


@cache
def moto_endpoint() -> str:
    """Start moto's server, once per process, and return its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    return "http://{}:{}".format(*server.get_host_and_port())
