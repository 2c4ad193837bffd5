"""RabbitMQ over AMQP 0-9-1: aiormq keeps the connection, the fast lane carries the messages."""

from .connection import AMQPTransport

__all__ = ["AMQPTransport"]
