"""What this device can tell the cloud of itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from device_runtime import __version__
from device_runtime.messages import Capability


def capability(engines: Mapping[str, str]) -> Capability:
    """The machine as this process may use it. engines: name -> version of those that can be loaded here.

    memory_mib is the machine's physical memory, 0 where the system does not say; cores are those that this process
    may run on.
    """
    return Capability(
        runtime=__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=_cores(),
        memory_mib=_memory_mib(),
        engines=dict(engines),
    )


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 0


def _memory_mib() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    except (ValueError, OSError):  # a name that this system does not have
        return 0
