"""Values to bodies and back: the codecs, the accept list, compression and the size limits.

Only this package imports msgpack. Errors name types, sizes and limits, never a value.
"""

from .base import Codec, EncodedBody
from .binary import MsgpackCodec
from .codecs import Codecs
from .text import JsonCodec

__all__ = ["Codec", "Codecs", "EncodedBody", "JsonCodec", "MsgpackCodec"]
