"""What aiorpcq costs, beside `aio_pika.patterns.RPC` on the same broker: `python -m benchmarks`."""
