"""The caller's side of a connection: one reply queue for all clients of an event loop, and what comes through it."""

from .inquiries import WorkerInfo
from .options import ReplyQueueMode, RouterOptions
from .router import ReplyRouter
from .sharing import Lease, acquire
from .statistics import RouterStatistics

__all__ = ["Lease", "ReplyQueueMode", "ReplyRouter", "RouterOptions", "RouterStatistics", "WorkerInfo", "acquire"]
