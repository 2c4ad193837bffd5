"""Ways to a broker: `memory://` in the process, `amqp://` and `amqps://` to RabbitMQ."""
