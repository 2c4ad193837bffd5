"""The worker that the web applications talk to. It serves until it is told to stop (Ctrl-C, SIGTERM), then drains.

Run it with `BROKER_URL=amqp://localhost python -m examples.worker`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from aiorpcq import ConnectFailed, Context, Service, Worker

__all__ = ["service"]

service = Service()


@service.method
async def add(a: int, b: int) -> int:
    return a + b


@service.method
async def resize(ctx: Context, picture: str, widths: list[int]) -> list[str]:
    """Make one file for each width, and say how far it is after each."""
    files: list[str] = []
    for width in widths:
        if width < 1:
            raise ValueError(f"a picture cannot be {width} pixels wide")
        await asyncio.sleep(0.1)  # stands for the work
        files.append(f"{picture}-{width}.png")
        await ctx.progress({"done": len(files), "total": len(widths)})
    return files


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    worker = Worker(os.environ.get("BROKER_URL", "amqp://localhost"), [service], grace=10)
    try:
        await worker.run()
    except ConnectFailed as error:
        sys.exit(f"worker: {error}")


if __name__ == "__main__":
    asyncio.run(main())
