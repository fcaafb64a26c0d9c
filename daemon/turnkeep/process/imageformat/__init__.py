"""CRIU's images as bytes: which files there are, how they are framed, what their messages hold.

What they mean is `process.images`'. `criu_pb2` is generated from
protos/turnkeep/process/imageformat/criu.proto.
"""

from turnkeep.process.imageformat.folder import ImageFolder
from turnkeep.process.imageformat.framing import Limits, decode, encode
from turnkeep.process.imageformat.kinds import KINDS, Framing, Kind, kind_of, name_of

__all__ = ["KINDS", "Framing", "ImageFolder", "Kind", "Limits", "decode", "encode", "kind_of", "name_of"]
