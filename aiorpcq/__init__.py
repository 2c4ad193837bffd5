"""RPC for asyncio over RabbitMQ: `await client.call("add", 2, 3)`."""

from .client import Client
from .codec import Codec, Codecs, JsonCodec, MsgpackCodec
from .context import Context
from .deadletters import DeadLetters
from .errors import (
    BacklogLimitExceeded,
    CodecError,
    ConnectFailed,
    ConnectionLost,
    ContentDisallowed,
    DeadlineExceeded,
    InvalidArguments,
    MethodNotFound,
    NoWorkers,
    Overloaded,
    PayloadTooLarge,
    Poisoned,
    Rejected,
    RemoteError,
    RPCError,
    TaskRevoked,
    TopologyMismatch,
    UnknownTask,
    Unroutable,
    UnsupportedVersion,
    UsageError,
    WorkerLost,
)
from .health import Health
from .limits import CacheLimits
from .options import CallOptions
from .protocol.outofband import OutOfBandLimits
from .retry import Busy, Retry, RetryBudget, RetryPolicy
from .router import WorkerInfo
from .service import Service
from .task import State, Task
from .worker import Worker

__all__ = [
    "BacklogLimitExceeded",
    "Busy",
    "CacheLimits",
    "CallOptions",
    "Client",
    "Codec",
    "CodecError",
    "Codecs",
    "ConnectFailed",
    "ConnectionLost",
    "ContentDisallowed",
    "Context",
    "DeadLetters",
    "DeadlineExceeded",
    "Health",
    "InvalidArguments",
    "JsonCodec",
    "MethodNotFound",
    "MsgpackCodec",
    "NoWorkers",
    "OutOfBandLimits",
    "Overloaded",
    "PayloadTooLarge",
    "Poisoned",
    "RPCError",
    "Rejected",
    "RemoteError",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "Service",
    "State",
    "Task",
    "TaskRevoked",
    "TopologyMismatch",
    "UnknownTask",
    "Unroutable",
    "UnsupportedVersion",
    "UsageError",
    "Worker",
    "WorkerInfo",
    "WorkerLost",
]
