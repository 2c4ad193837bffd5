"""What a link promises, on the broker in the process and on a real one."""
