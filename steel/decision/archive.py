"""The bytes of an exported file: its digest, and the checks that come before torch loads it.

An exported file is a program in TorchScript's ZIP format, followed by its seal: a comment with the SHA-256 of all bytes
before it. torch verifies neither the seal nor the checksums of the ZIP archive. It receives a new archive that contains
only the records that were checked here, so the two ZIP readers cannot disagree about the content of a file.
"""

import hashlib
import io
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from steel.decision.operators import find_forbidden
from steel.errors import InputError

METADATA = "inspector.json"

# The comment of the ZIP archive: this text, then the digest in hexadecimal.
_SEAL = b"steel sha256 "
_NUM_DIGITS = 64

# The records that torch needs. It can do without `.debug_pkl`, the line numbers of the source.
_NEEDED = re.compile(r"[^/]+/(version|byteorder|(data|constants)\.pkl|(data|constants)/\d+|code/.+\.py)")
_ROOT = re.compile(r"[^/]+/")
_MOST_CODE = 1 << 26  # bytes by which an archive may grow when it is unpacked; the code of a large network has 1e6

# Objects in the pickles of a program, apart from its own classes. `torch.classes` are classes of C++, which can act.
_OBJECTS = re.compile(
    r"__torch__(?!\.torch\.classes\b)[\w.]* \w+|collections OrderedDict|torch \w+Storage"
    r"|torch\._utils _rebuild_tensor_v2|torch\.jit\._pickle (build_(int|double|bool|tensor)list|restore_type_tag)"
)

_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, LookupError,
    OSError, OverflowError,
)  # fmt: skip


class Archive(NamedTuple):
    """An exported file whose bytes were checked.

    Attributes:
        sha256: Digest of the whole file, as `sha256sum` prints it.
        is_sealed: Whether the file stores a digest of its content. Files of earlier versions do not.
        metadata: The record `inspector.json`.
        records: The checked records that torch needs, by name; see `pack`.
    """

    sha256: str
    is_sealed: bool
    metadata: bytes
    records: dict[str, bytes]


def seal(program: bytes) -> bytes:
    """Add a seal to a TorchScript archive, which must have no comment."""
    length = len(_SEAL) + _NUM_DIGITS
    content = program[:-2] + length.to_bytes(2, "little") + _SEAL  # the last two bytes are the length of the comment
    return content + hashlib.sha256(content).hexdigest().encode()


def open_archive(path: Path, digest: str | None = None) -> Archive:
    """Read an exported file, and check its digest, its seal, its records and its operators. Nothing is executed.

    Args:
        path: The file.
        digest: Expected SHA-256 of the file in hexadecimal; None accepts any file.

    Raises:
        InputError: The file does not exist, is another one, is damaged, is not an exported inspector, or uses an
            operator that no exported inspector needs.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; `steel export` writes it")
    content = path.read_bytes()
    sha256, is_sealed = _check_digests(content, path, digest)
    damaged = f"{path} is not an exported inspector or is damaged; `steel export` writes one"
    try:
        records = _unpack(content)
    except _UNREADABLE as error:
        raise InputError(damaged) from error
    needed = {name: record for name, record in records.items() if _NEEDED.fullmatch(name)}
    metadata = [record for name, record in records.items() if _ROOT.sub("", name, count=1) == f"extra/{METADATA}"]
    if not any(name.endswith("/constants.pkl") for name in needed):
        raise InputError(damaged)
    if len(metadata) != 1:
        raise InputError(f"{path} is a TorchScript program, but not an inspector; `steel export` writes one")
    if forbidden := _find_forbidden(needed):
        raise InputError(
            f"{path} uses {forbidden}, which no exported inspector needs; do not use this file unless you trust its "
            f"source, and export it again from its checkpoints"
        )
    return Archive(sha256, is_sealed, metadata[0], needed)


def _check_digests(content: bytes, path: Path, expected: str | None) -> tuple[str, bool]:
    """Return the digest of a file and whether it is sealed; raise InputError if it is another file or is damaged."""
    hashed = hashlib.sha256(content[:-_NUM_DIGITS])
    of_content = hashed.hexdigest()
    hashed.update(content[-_NUM_DIGITS:])
    sha256 = hashed.hexdigest()
    if expected is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
            raise InputError(f"--digest must be a SHA-256 of 64 hexadecimal digits, got {expected}")
        if expected.lower() != sha256:
            raise InputError(f"{path} has the SHA-256 {sha256}, but --digest is {expected.lower()}; use the right file")
    end = content[-_NUM_DIGITS - len(_SEAL) :]
    is_sealed = end.startswith(_SEAL)
    if is_sealed and end[len(_SEAL) :] != of_content.encode():
        raise InputError(f"{path} is damaged: its content does not match the digest stored in it; copy it again")
    return sha256, is_sealed


def _unpack(content: bytes) -> dict[str, bytes]:
    """Return the records of an archive by name; their checksums are verified."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(content) + _MOST_CODE:
            raise ValueError("the archive would become too large")
        records = {entry.filename: archive.read(entry) for entry in entries}
    if len(records) < len(entries) or len({name.partition("/")[0] for name in records}) > 1:
        raise ValueError("the names of the records are ambiguous")
    return records


@contextmanager
def pack(records: dict[str, bytes]) -> Iterator[str | IO[bytes]]:
    """Pack records as an archive in memory; yield its path where files in memory have one, or else a buffer.

    torch copies a buffer several times: packing and loading 142 MB took 0.43 s of CPU time, and 0.12 s with a path.
    """
    packed = _create_file()
    try:
        _write(records, packed)
    except OSError:  # a limit on the size of files holds for files in memory too
        with suppress(OSError):  # it still tries to write the rest
            packed.close()
        _write(records, packed := io.BytesIO())
    with packed:
        yield packed if isinstance(packed, io.BytesIO) else _name(packed)


def _write(records: dict[str, bytes], file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    file.flush()
    file.seek(0)


def _create_file() -> IO[bytes]:
    with suppress(AttributeError, OSError):  # only Linux has it, and a sandbox may forbid it
        file = os.fdopen(os.memfd_create(METADATA), "w+b")
        if os.path.exists(_name(file)):
            return file
        file.close()
    return io.BytesIO()


def _name(file: IO[bytes]) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def _find_forbidden(records: dict[str, bytes]) -> str:
    """Describe the first object or operator that no exported inspector needs, or return ""."""
    for name, record in records.items():
        if name.endswith(".py") and (operator := find_forbidden(record)):
            return f"the operator {operator}"
        if name.endswith(".pkl") and (found := _find_object(record)):
            return f"the object {found}"
    return ""


def _find_object(pickle: bytes) -> str:
    """Return the first object in a pickle that is not allowed, or "". The pickle is not executed."""
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL" and not _OBJECTS.fullmatch(str(argument)):
                return str(argument)[:80]
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):  # TorchScript does not write these
                return opcode.name
    except ValueError:
        return "that is not a complete pickle"
    return ""
