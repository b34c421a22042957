"""A program that leaks in every way, slowly: what a soak must notice. It tells the port of its metrics."""

import asyncio
import itertools
import os
import sys
import threading

from prometheus_client import REGISTRY, Counter, Gauge, start_http_server

_STEP_S = 0.2
_BYTES = 1 << 17


async def main() -> None:
    """Leak memory, a descriptor, a thread, a task and a series at each step."""
    requests = Counter("tandem_requests", "Requests, each in a series of its own.", ["id"])
    Gauge("tandem_loop_tasks", "Tasks of the event loop.").set_function(lambda: len(tasks))
    server, _ = start_http_server(0, registry=REGISTRY)
    sys.stdout.write(f"metrics_port={server.server_port}\n")
    sys.stdout.flush()
    memory, tasks, never = [], [], threading.Event()
    for number in itertools.count():
        memory.append(os.urandom(_BYTES))
        os.open(os.devnull, os.O_RDONLY)
        if number % 10 == 0:
            threading.Thread(target=never.wait, daemon=True).start()
        tasks.append(asyncio.create_task(asyncio.Event().wait()))
        requests.labels(str(number)).inc()
        await asyncio.sleep(_STEP_S)


if __name__ == "__main__":
    asyncio.run(main())
