"""The door to the on-disk format: a folder of shards is written by ``ShardWriter`` and read by ``ShardReader``.

A folder holds ``shard-00000.safetensors`` … each with its sidecar ``shard-00000.json``, and, once complete,
``manifest.json``. A shard's tensors are ``acts [rows, d_in]``, ``seq_ids`` int64, ``positions`` int32 and
``token_ids`` int32, and beside ``acts`` of int8 ``scales`` float32; only real tokens have a row.
"""

from sae_forge.data.manifest import BLOCK_ROWS, MAX_SHARDS, Fingerprint, Manifest, ShardInfo, complete, find_shards
from sae_forge.data.reader import ShardReader
from sae_forge.data.shard_file import Block
from sae_forge.data.writer import ShardWriter, buffer_bytes, row_bytes

__all__ = [
    "BLOCK_ROWS",
    "MAX_SHARDS",
    "Block",
    "Fingerprint",
    "Manifest",
    "ShardInfo",
    "ShardReader",
    "ShardWriter",
    "buffer_bytes",
    "complete",
    "find_shards",
    "row_bytes",
]
