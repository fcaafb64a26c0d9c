"""What a user would keep files with instead: restic, borg, rsync, tar with zstd.

Each is a `Tool`: a store in a folder of its own, into which a folder is kept and from
which it is brought back. `store` is Turnkeep's own store as such a tool, encrypted and not. They are started
as the programs that they are, and their starts count.
"""

from bench.tools.archives import Borg, Restic
from bench.tools.base import Tool, why_missing
from bench.tools.copies import Rsync, TarZstd
from bench.tools.store import EncryptedStore, Store

__all__ = ["Borg", "EncryptedStore", "Restic", "Rsync", "Store", "TarZstd", "Tool", "why_missing"]
