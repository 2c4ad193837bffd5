"""The tour of aiorpcq in one program: a worker and a client side by side, on a broker in memory or on RabbitMQ."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from typing import Final, TextIO
from urllib.parse import urlsplit

from aiorpcq import Client, Context, RemoteError, RPCError, Service, Worker

# Exchanges and queues get names of their own, so that a broker's other services are never mixed with these methods.
PREFIX: Final = "quickstart"
PRICES: Final = {"tea": 3, "coffee": 4}
PICTURES: Final = ["cat", "dog", "fox", "owl", "hen", "bee", "elk", "yak"]
CELSIUS: Final = {"Oslo": 4, "Lima": 19, "Pune": 31, "Bonn": 12, "Kyiv": 7}
CALLS: Final = 2_000
CONCURRENCY: Final = 64

# --- What the worker offers

service = Service()
audited = asyncio.Queue[str](maxsize=100)


@service.method
async def add(a: int, b: int) -> int:
    return a + b


@service.method
async def resize(ctx: Context, pictures: list[str]) -> str:
    for done, picture in enumerate(pictures, start=1):
        await asyncio.sleep(0.12)  # stands for the work
        await ctx.progress({"done": done, "total": len(pictures), "picture": picture})
    return f"{len(pictures)} pictures resized"


@service.method
def temperature(city: str) -> int:  # a plain def runs in a thread: it may block
    time.sleep(0.3)
    return CELSIUS[city]


@service.method
async def audit(entry: str) -> None:
    audited.put_nowait(entry)


@service.method
async def price(item: str) -> int:
    try:
        return PRICES[item]
    except KeyError as error:
        raise LookupError(f"no price for {item!r}") from error


# --- What the client does with it


async def tour(client: Client, page: Page) -> None:
    await call(client, page)
    await stream(client, page)
    await call_at_once(client, page)
    await cast(client, page)
    await fail(client, page)
    await measure(client, page)


async def call(client: Client, page: Page) -> None:
    page.step("A call is awaited like any other coroutine", 'await client.call("add", 2, 3)')
    started = time.perf_counter()
    value = await client.call("add", 2, 3)
    page.outcome(f"{value!r}  in {(time.perf_counter() - started) * 1e3:.1f} ms")


async def stream(client: Client, page: Page) -> None:
    page.step(
        "A task tells how far it is",
        'task = await client.submit("resize", pictures)',
        "async for state in task.stream(): ...",
    )
    task = await client.submit("resize", PICTURES)
    async for state in task.stream():
        if state.name == "PROGRESS":
            page.progress(state.name, **state.value)
        elif state.is_terminal:
            page.outcome(f"{state.name}  {state.value!r}")
        else:
            page.line(state.name)


async def call_at_once(client: Client, page: Page) -> None:
    page.step(
        "Calls run side by side; this method is a plain def that blocks for 0.3 s",
        'await asyncio.gather(*(client.call("temperature", city) for city in cities))',
    )
    started = time.perf_counter()
    values = await asyncio.gather(*(client.call("temperature", city) for city in CELSIUS))
    seconds = time.perf_counter() - started
    page.outcome(", ".join(f"{city} {value} °C" for city, value in zip(CELSIUS, values, strict=True)))
    page.outcome(f"{len(CELSIUS)} × 0.3 s of work in {seconds:.2f} s")


async def cast(client: Client, page: Page) -> None:
    page.step("A cast asks for no answer: it returns once the broker has it", 'await client.cast("audit", "user 7 in")')
    await client.cast("audit", "user 7 in")
    page.outcome("sent")
    try:
        async with asyncio.timeout(1):
            page.outcome(f"the worker got {await audited.get()!r}")
    except TimeoutError:
        page.outcome("the worker of another quickstart on this broker got it")


async def fail(client: Client, page: Page) -> None:
    page.step("What a method raises is raised here, with the worker's traceback", 'await client.call("price", "moon")')
    try:
        await client.call("price", "moon")
    except RemoteError as error:
        page.failure(f"{type(error).__name__}: {error}")
        page.quote(error.traceback)


async def measure(client: Client, page: Page) -> None:
    page.step(f"And it is fast: {CALLS:,} calls, {CONCURRENCY} at a time", 'await client.call("add", number, 1)')
    numbers = iter(range(CALLS))

    async def caller() -> int:
        return sum([await client.call("add", number, 1) == number + 1 for number in numbers])

    started = time.perf_counter()
    right = sum(await asyncio.gather(*(caller() for _ in range(CONCURRENCY))))
    seconds = time.perf_counter() - started
    page.outcome(f"{right:,} right answers in {seconds:.2f} s: {CALLS / seconds:,.0f} calls/s")


# --- How it is shown


class Page:
    """Writes numbered steps to *out*; in colour and with a moving bar where that is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_terminal and not os.environ.get("NO_COLOR")
        self._number = 0

    def title(self, text: str) -> None:
        self._write(self._paint("1", text))

    def step(self, title: str, *code: str) -> None:
        self._number += 1
        self._write("\n" + self._paint("1", f"{self._number}. {title}"))
        for line in code:
            self.line(self._paint("36", line))

    def line(self, text: str) -> None:
        self._write("   " + text)

    def outcome(self, text: str) -> None:
        self.line(self._paint("32", "→ " + text))

    def failure(self, text: str) -> None:
        self.line(self._paint("31", "→ " + text))

    def quote(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self.line(self._paint("2", "  │ " + line))

    def progress(self, name: str, *, done: int, total: int, picture: str) -> None:
        """Draw a bar over the last one; without a terminal, a line."""
        count = f"{done}/{total}"
        if not self._is_terminal:
            self.line(f"{name} {count} {picture}")
            return
        filled = 24 * done // total
        bar = self._paint("33", "█" * filled) + self._paint("2", "░" * (24 - filled))
        self._out.write(f"\r\x1b[K   {name} {bar} {count} {picture}" + ("\n" if done == total else ""))
        self._out.flush()

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._has_colour else text


async def run(broker: str, page: Page) -> None:
    worker, client = Worker(broker, [service], prefix=PREFIX), Client(broker, prefix=PREFIX)
    async with worker, client:
        page.title(f"aiorpcq on {without_credentials(broker)}: one worker, one client")
        await tour(client, page)
    page.title("\nThat was all of it: Service, Worker, Client.")


def without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else url


def parse_broker() -> str:
    parser = argparse.ArgumentParser(
        description="A worker and a client side by side: a call, a task with progress, several calls\n"
        "at once, a cast, an error with its remote traceback, and how many calls a second\n"
        "that makes.",
        epilog="examples:\n"
        "  quickstart.py                                      no broker needed, all in this process\n"
        "  quickstart.py amqp://guest:guest@localhost/        on RabbitMQ\n\n"
        "Colours are for terminals only; NO_COLOR=1 turns them off.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "broker", metavar="BROKER", nargs="?", default="memory://", help="the broker's URL (default: %(default)s)"
    )
    broker: str = parser.parse_args().broker
    return broker


def main() -> int:
    broker = parse_broker()
    for name in ("aiormq", "aiorpcq"):  # the one line below says what their warnings would
        logging.getLogger(name).addHandler(logging.NullHandler())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no blocks and arrows shows question marks
    try:
        asyncio.run(run(broker, Page(sys.stdout)))
    except (RPCError, ValueError) as error:  # no connection, or a URL that cannot be read
        print("quickstart:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
