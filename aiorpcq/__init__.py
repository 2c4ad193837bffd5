"""RPC for asyncio over RabbitMQ: `await client.call("add", 2, 3)`."""

from .client import Client
from .codec import Codec, Codecs, JsonCodec, MsgpackCodec
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
from .options import CallOptions
from .protocol.outofband import OutOfBandLimits
from .protocol.terminals import CacheLimits
from .service import Context, Service
from .task import State, Task
from .worker import Worker

__all__ = [
    "BacklogLimitExceeded",
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
    "DeadlineExceeded",
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
    "WorkerLost",
]
