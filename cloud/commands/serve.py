"""`coda serve`: the matching server."""

from __future__ import annotations

import argparse
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from cloud.http import ServerLimits
    from cloud.http.accepting import Share
    from cloud.telemetry import Metrics

DESCRIPTION = """\
Run the matching server over a home that has a release (`coda release publish`) and a pool (`coda data ingest`). It logs
JSON lines to stderr and stops gracefully on SIGTERM. New releases are served as they come, and rollouts that their
gates speak against are stopped. With several workers, SIGHUP replaces them one by one, without a pause. The API page is
at /docs, the dashboard at /dashboard, Prometheus' metrics at /metrics; docs/operate.md says more.

Put a TLS-terminating proxy in front of it where the network is not yours.

example:
  coda serve --home runs/server --port 8470 --workers 2
"""
_RESIDENT_EVERY_S = 5.0


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
        parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, one a core (%(default)s)")
        parser.add_argument(
            "--store",
            default="faiss",
            metavar="NAME",
            help="what matches: faiss, faiss:pq, exact, or milvus:URI (faiss)",
        )
        parser.add_argument("--otlp", metavar="URL", help="send traces to this OpenTelemetry collector (OTLP/HTTP)")
        parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        if not 1 <= args.workers <= 256:
            raise InputError("--workers goes from 1 to 256; one for each core is a good number")
        from cloud.home import ServerHome
        from cloud.http import serving
        from cloud.http.limits import limits_of
        from cloud.http.logs import configure
        from cloud.telemetry import FAMILIES, Metrics

        configure(args.log_level)
        with ServerHome(args.home) as home:  # what is wrong with it is said once, before workers start
            home.release()
            limits = limits_of(home.settings)
        with _listening(args.host, args.port) as listener:

            def ready() -> None:
                port = listener.getsockname()[1]
                host = f"[{args.host}]" if ":" in args.host else args.host
                print(f"serving {args.home} at http://{host}:{port}  (API page: /docs, dashboard: /)", flush=True)
                if args.port_file:
                    write_atomically(args.port_file, f"{port}\n".encode())

            metrics = Metrics(FAMILIES, 2 * args.workers)
            if args.workers == 1:
                _serve(args, listener, limits, metrics, ready)
            else:
                serving.supervise(
                    args.workers,
                    lambda slot, share, answering: _serve(args, listener, limits, metrics.of(slot), answering, share),
                    ready,
                )
        return 0


def _serve(
    args: argparse.Namespace,
    listener: socket.socket,
    limits: ServerLimits,
    metrics: Metrics,
    ready: Callable[[], None],
    share: Share | None = None,
) -> None:
    """One worker."""
    from dataclasses import replace

    from cloud.home import ServerHome
    from cloud.http import Services, create_app, serving
    from cloud.http.keeper import ReleaseKeeper
    from cloud.pool import Keeper
    from cloud.telemetry import tracing

    if args.otlp:
        tracing.configure(args.otlp)
    with ServerHome(args.home) as home:
        services = replace(Services.of(home, args.store, metrics), limits=limits, watch_token=home.watch_token)
        services.served.warm()
        stopping = threading.Event()
        watching = threading.Thread(target=_watch, args=(metrics, stopping), name="watch")
        watching.start()
        try:
            with Keeper(services.pool, services.served.prepare), ReleaseKeeper(services):
                serving.run(create_app(services), listener, limits, ready, share)
        finally:
            stopping.set()
            watching.join()
            metrics.set("coda_worker_up", to=0)
            metrics.set("coda_worker_resident_bytes", to=0)


def _watch(metrics: Metrics, stopping: threading.Event) -> None:
    """Keep this worker's gauges, until told to stop."""
    page = os.sysconf("SC_PAGE_SIZE")
    metrics.set("coda_worker_up", to=1)
    while True:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
        metrics.set("coda_worker_resident_bytes", to=resident)
        if stopping.wait(_RESIDENT_EVERY_S):
            return


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
