"""Zip archives as `torch.save` and `torch.jit.save` write them: records under one folder, not compressed."""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from medvlsm_jax.weights.reading.tensors import Damaged, Refused, printable

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
MAX_INFLATION = 16  # of compressed records, over the file's size
INFLATION_ALLOWANCE = 1 << 26  # bytes, for small files
ENCRYPTED = 1  # of a record's flags


class Archive:
    """The records of an archive, by their names below its one folder.

    Args:
        path: named by nothing here; errors are for the caller to complete.
        data: the file's bytes, uint8 (N,).

    Raises:
        Damaged: it is no whole zip archive.
        Refused: it holds no pickle of torch.save's, or unfolds to far more than its size.
    """

    def __init__(self, path: Path, data: np.ndarray):
        self.data = data
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError, EOFError) as error:
            raise Damaged("it is no whole zip archive") from error
        roots = sorted({info.filename.partition("/")[0] for info in infos if is_main_pickle(info.filename)})
        if len(roots) != 1:
            raise Refused("it is a zip archive, but holds no data.pkl as torch.save writes it")
        prefix = roots[0] + "/"
        self.records = {info.filename[len(prefix) :]: info for info in infos if info.filename.startswith(prefix)}
        inflated = sum(info.file_size for info in infos if info.compress_type != zipfile.ZIP_STORED)
        if inflated > MAX_INFLATION * data.nbytes + INFLATION_ALLOWANCE:
            raise Refused("it is a compressed archive that unfolds to far more than its size: unpack it")

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def read(self, name: str) -> np.ndarray:
        """The bytes of a record, uint8 (N,): a view of the file where it is not compressed.

        Raises:
            Damaged: it is missing, cut short, or not what its checksum says.
        """
        info = self.records.get(name)
        if info is None:
            raise Damaged(f"the record {printable(name)} is missing")
        start = info.header_offset
        header = self.data[start : start + LOCAL_HEADER.size].tobytes()
        if len(header) < LOCAL_HEADER.size or info.flag_bits & ENCRYPTED:
            raise Damaged(f"the record {printable(name)} is cut short or encrypted")
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start += LOCAL_HEADER.size + name_length + extra_length
        content = self.data[start : start + info.compress_size]
        if signature != b"PK\x03\x04" or content.nbytes != info.compress_size:
            raise Damaged(f"the record {printable(name)} is not whole")
        content = inflate(content, info)
        # torch.save can be told to leave out checksums, and writes 0 then.
        if info.CRC and zlib.crc32(content.data) != info.CRC:
            raise Damaged(f"the record {printable(name)} is not what its checksum says: download or copy it again")
        return content


def is_main_pickle(name: str) -> bool:
    """Whether a record is the pickle that describes the others."""
    return name.count("/") == 1 and name.endswith("/data.pkl")


def inflate(content: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """A record as it was before it was compressed."""
    if info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content.data, max(info.file_size, 1))
        except zlib.error as error:
            raise Damaged(f"the record {printable(info.filename)} cannot be unpacked") from error
        content = np.frombuffer(inflated, np.uint8)
    elif info.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"the record {printable(info.filename)} is compressed by a method that torch.save does not use")
    if content.nbytes != info.file_size:
        raise Damaged(f"the record {printable(info.filename)} is not whole")
    return content
