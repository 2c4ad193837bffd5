"""What is decided without I/O: plain classes, no clock, no randomness, no event loop."""
