"""What a program may rely on, whatever the broker: every test here runs on `memory://` and on `amqp://`."""
