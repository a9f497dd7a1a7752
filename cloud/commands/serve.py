"""`coda serve`: the matching server."""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

DESCRIPTION = """\
Run the matching server over a home that has a release (`coda release publish`) and a pool (`coda data ingest`). It logs
JSON lines to stderr and stops gracefully on SIGTERM. The API page is at /docs.

Put a TLS-terminating proxy in front of it where the network is not yours.

example:
  coda serve --home runs/server --port 8470
"""


class Command:
    help = "run the matching server"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
        parser.add_argument("--port", type=int, default=8470, help="0 picks a free one (%(default)s)")
        parser.add_argument("--port-file", type=Path, metavar="FILE", help="write the port here once it is open")
        parser.add_argument(
            "--store",
            default="faiss",
            metavar="NAME",
            help="what matches: faiss, faiss:pq, exact, or milvus:URI (faiss)",
        )
        parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        import uvicorn

        from cloud.home import ServerHome
        from cloud.http import Services, create_app
        from cloud.http.logs import configure
        from cloud.pool import Keeper

        configure(args.log_level)
        with ServerHome(args.home) as home, _listening(args.host, args.port) as listener:
            services = Services.of(home, args.store)
            app = create_app(services)
            port = listener.getsockname()[1]

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    host = f"[{args.host}]" if ":" in args.host else args.host
                    print(f"serving {args.home} at http://{host}:{port}  (API page: /docs)", flush=True)
                    if args.port_file:
                        write_atomically(args.port_file, f"{port}\n".encode())

            config = uvicorn.Config(
                app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
                timeout_graceful_shutdown=20,
            )  # fmt: skip
            # uvicorn raises the signal anew once it has stopped; the default would end us before the home is closed
            signal.signal(signal.SIGTERM, lambda *_: None)
            with Keeper(services.pool, services.store.prepare):
                Server(config).run([listener])
        return 0


def _listening(host: str, port: int) -> socket.socket:
    """Raises: InputError: the address cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)  # two servers can bind one port as long as neither listens
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
        raise InputError(f"cannot listen on {host}:{port}: {reason}; choose another --port, or --port 0") from None
    return listener
