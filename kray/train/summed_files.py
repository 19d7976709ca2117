"""Files whose size and CRC-32 are known when they are written, so that nobody reads a checkpoint back to compute them."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem


class _SummedFile(io.BufferedWriter):
    """A file that is written from its start to its end."""

    size = crc = 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.size += memoryview(data).nbytes
        return super().write(data)

    def seek(self, *args: Any) -> int:
        raise io.UnsupportedOperation("a file with a checksum is written from its start to its end")


class SummedFiles(FileSystem):
    """torch's files, with checksums of all that are written.

    Attributes:
        checksums: [size in bytes, CRC-32] of each file that has been written, by its name.
    """

    def __init__(self) -> None:
        self.checksums: dict[str, list[int]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open a file; see torch."""
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with _SummedFile(io.FileIO(path, "wb")) as stream:
            yield stream
        self.checksums[Path(path).name] = [stream.size, stream.crc]

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Rename a file; see torch."""
        super().rename(path, new_path)
        if Path(path).name in self.checksums:
            self.checksums[Path(new_path).name] = self.checksums.pop(Path(path).name)
