"""The server as a process: ``python -m testkit.s3server --port 0 --bucket b``.

It prints ``listening on URL`` and serves until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
from collections.abc import Callable

from testkit.s3server.server import S3Server


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="An in-memory S3 server for tests and benchmarks.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--bucket", action="append", default=[], help="create it (repeatable)")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--credentials", metavar="KEY:SECRET", help="check signatures")
    parser.add_argument("--faults", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--log-size", type=int, default=0, help="requests the log keeps")
    parser.add_argument("--tls-cert", help="PEM file; serves HTTPS")
    parser.add_argument("--tls-key", help="PEM file")
    parser.add_argument("--no-uvloop", action="store_true", help="even if it is installed")
    return parser.parse_args()


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    context = None
    if arguments.tls_cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    credentials = None
    if arguments.credentials:
        access_key, _, secret = arguments.credentials.partition(":")
        credentials = {access_key: secret}
    server = S3Server(
        arguments.bucket,
        host=arguments.host,
        port=arguments.port,
        credentials=credentials,
        region=arguments.region,
        log_size=arguments.log_size,
        ssl_context=context,
    )
    server.faults.update(arguments.faults)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with server:
        print(f"listening on {server.url}", flush=True)  # noqa: T201 (the caller waits for it)
        await done.wait()


def main() -> None:
    """Run as a process, on uvloop where it is installed."""
    arguments = parse_arguments()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if not arguments.no_uvloop:
        try:
            import uvloop  # noqa: PLC0415 (optional, and for the process only)
        except ImportError:
            pass
        else:
            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
