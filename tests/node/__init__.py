"""RabbitMQ nodes of the tests' own: private, on loopback only, and gone without a trace afterwards."""

from __future__ import annotations

from .cluster import Cluster
from .control import ConnectionInfo, QueueInfo
from .process import Node
from .programs import NodeError

__all__ = ["Cluster", "ConnectionInfo", "Node", "NodeError", "QueueInfo"]
