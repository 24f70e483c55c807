"""What a gevent worker of gunicorn does first when it is told to stop."""

from collections.abc import Callable

# Whoever holds a response open without end adds a function that ends it: the worker waits for requests in flight.
at_stop: list[Callable[[], None]] = []
