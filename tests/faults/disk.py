"""A disk that fails, and one that forgets what was not synced: a file system for SQLite, in Python.

It stands between SQLite and the file system that SQLite would use, and is the default one of its process from
`Shim.install` on. What it holds back is in this process alone, so it dies with it: `kill -9` is then what
pulling the plug is to a disk with a cache.
"""

import ctypes
import random
from ctypes import c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import sqlite_abi as abi
from tests.faults.panel import Call, Disk, Panel

SECTOR = 512  # bytes that a disk writes as a whole or not at all
_OWN_BYTES = 16  # our part of SQLite's file object: the pointer to our methods, rounded up
_ERRORS = {
    (Disk.FULL, Call.WRITE): abi.FULL,
    (Disk.FULL, Call.SHM): abi.IOERR_SHMSIZE,
    (Disk.READ_ONLY, Call.WRITE): abi.READONLY,
    (Disk.READ_ONLY, Call.SHM): abi.CANTOPEN,  # the file of shared memory cannot be made
}
_OTHER_ERRORS = {
    Call.OPEN: abi.CANTOPEN,
    Call.READ: abi.IOERR_READ,
    Call.WRITE: abi.IOERR_WRITE,
    Call.SYNC: abi.IOERR_FSYNC,
    Call.TRUNCATE: abi.IOERR_TRUNCATE,
    Call.DELETE: abi.IOERR_DELETE,
    Call.SHM: abi.IOERR_SHMMAP,
}


@dataclass
class Held:
    """A file as its process sees it, and the changes that the disk has not been made to keep."""

    inode: int
    content: bytearray
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut off here

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`, with zeros up to there where the file was shorter."""
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.unsynced.append((offset, data))

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        del self.content[size:]
        self.unsynced.append((size, None))


@dataclass
class Open:
    """An open file: where the real file object is, its methods, and what is held back."""

    real: int
    methods: abi.IoMethods
    held: Held | None


class Shim:
    """The file system. `hold` keeps back what was not synced; with `leak`, some sectors of it reach the disk
    all the same, in any order, as disks with a cache may do. `panel` says which call fails."""

    def __init__(self, panel: Panel, *, hold: bool = False, leak: random.Random | None = None) -> None:
        self._panel = panel
        self._hold = hold
        self._leak = leak
        self._files: dict[int, Open] = {}
        self._held: dict[str, Held] = {}
        self._sqlite = abi.library()
        self._below = self._sqlite.sqlite3_vfs_find(None)
        own = {
            "xClose": self._close,
            "xRead": self._read,
            "xWrite": self._write,
            "xTruncate": self._truncate,
            "xSync": self._sync,
            "xFileSize": self._size,
            "xShmMap": self._map,
        }
        calls = {name: kind(own.get(name) or self._pass_on(name)) for name, kind in abi.IO_CALLS.items()}
        self._methods = abi.IoMethods(2, **calls)
        self._vfs = abi.Vfs.from_buffer_copy(self._below.contents)
        self._vfs.szOsFile += _OWN_BYTES
        self._vfs.pNext = None
        self._vfs.zName = b"shim"
        self._vfs.xOpen = abi.OPEN(self._open)
        self._vfs.xDelete = abi.DELETE(self._delete)
        self._vfs.xAccess = abi.ACCESS(self._access)

    def install(self) -> None:
        """Be the file system of every database that this process opens from now on. SQLite keeps pointers
        into this object: it must live as long as the process."""
        if self._sqlite.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) != abi.OK:
            raise RuntimeError("SQLite does not take the file system")

    # ---- the file system

    def _open(self, _: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = ctypes.string_at(name).decode() if name else ""
        c_void_p.from_address(file).value = None
        disk = self._panel.fails(Call.OPEN)
        if disk is Disk.READ_ONLY and flags & abi.OPEN_MAIN_DB:
            flags = flags & ~(abi.OPEN_READWRITE | abi.OPEN_CREATE) | abi.OPEN_READONLY
        elif disk is not None:
            return abi.CANTOPEN
        real = file + _OWN_BYTES
        status = int(self._below.contents.xOpen(self._address, name, real, flags, out))
        below = c_void_p.from_address(real).value
        if below:
            opened = Open(real, abi.IoMethods.from_address(below), None)
            self._files[file] = opened
            c_void_p.from_address(file).value = ctypes.addressof(self._methods)
            if self._hold and path and status == abi.OK:
                opened.held = self._hold_back(path, opened)
        return status

    def _hold_back(self, path: str, opened: Open) -> Held:
        """What is held back of the file; nothing yet of one that has come to this place since."""
        inode = Path(path).stat().st_ino
        held = self._held.get(path)
        if held is None or held.inode != inode:
            held = self._held[path] = Held(inode, _content(opened))
        return held

    def _delete(self, _: int, name: bytes, sync: int) -> int:
        disk = self._panel.fails(Call.DELETE)
        if disk is not None:
            return _error(disk, Call.DELETE)
        self._held.pop(name.decode(), None)
        return int(self._below.contents.xDelete(self._address, name, sync))

    def _access(self, _: int, name: bytes, flags: int, out: Any) -> int:
        held = self._held.get(name.decode())
        if held is not None and flags == abi.ACCESS_EXISTS:
            out[0] = int(len(held.content) > 0)
            return abi.OK
        return int(self._below.contents.xAccess(self._address, name, flags, out))

    @property
    def _address(self) -> int:
        return ctypes.addressof(self._below.contents)

    # ---- its files

    def _pass_on(self, name: str) -> abi.Method:
        def call(file: int, *arguments: Any) -> int | None:
            opened = self._files[file]
            answer: int | None = getattr(opened.methods, name)(opened.real, *arguments)
            return answer

        return call

    def _close(self, file: int) -> int:
        opened = self._files.pop(file)
        return int(opened.methods.xClose(opened.real))

    def _read(self, file: int, to: int, size: int, offset: int) -> int:
        opened = self._files[file]
        disk = self._panel.fails(Call.READ)
        if disk is not None:
            return _error(disk, Call.READ)
        if opened.held is None:
            return int(opened.methods.xRead(opened.real, to, size, offset))
        data = bytes(opened.held.content[offset : offset + size])
        ctypes.memmove(to, data.ljust(size, b"\0"), size)
        return abi.OK if len(data) == size else abi.IOERR_SHORT_READ

    def _write(self, file: int, what: int, size: int, offset: int) -> int:
        opened = self._files[file]
        disk = self._panel.fails(Call.WRITE)
        if disk is Disk.FULL:
            size //= 2  # what had room
        elif disk is not None:
            return _error(disk, Call.WRITE)
        if opened.held is None:
            status = int(opened.methods.xWrite(opened.real, what, size, offset))
        else:
            data = ctypes.string_at(what, size)
            opened.held.write(offset, data)
            status = self._let_slip(opened, offset, data)
        return status if disk is None else _error(disk, Call.WRITE)

    def _truncate(self, file: int, size: int) -> int:
        opened = self._files[file]
        disk = self._panel.fails(Call.TRUNCATE)
        if disk is not None:
            return _error(disk, Call.TRUNCATE)
        if opened.held is None:
            return int(opened.methods.xTruncate(opened.real, size))
        opened.held.truncate(size)
        return abi.OK

    def _sync(self, file: int, flags: int) -> int:
        opened = self._files[file]
        disk = self._panel.fails(Call.SYNC)
        if disk is not None:
            return _error(disk, Call.SYNC)
        if opened.held is not None:
            for place, data in opened.held.unsynced:
                status = _put(opened, place, data)
                if status != abi.OK:
                    return status
            opened.held.unsynced.clear()
        return int(opened.methods.xSync(opened.real, flags))

    def _size(self, file: int, out: Any) -> int:
        opened = self._files[file]
        if opened.held is None:
            return int(opened.methods.xFileSize(opened.real, out))
        out[0] = len(opened.held.content)
        return abi.OK

    def _map(self, file: int, region: int, size: int, extend: int, out: Any) -> int:
        opened = self._files[file]
        disk = self._panel.fails(Call.SHM)
        if disk is not None:
            return _error(disk, Call.SHM)
        return int(opened.methods.xShmMap(opened.real, region, size, extend, out))

    def _let_slip(self, opened: Open, offset: int, data: bytes) -> int:
        """Some sectors of what is held back, written to the disk before their time."""
        if self._leak is None or self._leak.random() < 0.5:
            return abi.OK
        for start in range(-(offset % SECTOR), len(data), SECTOR):
            piece = data[max(0, start) : start + SECTOR]
            if self._leak.random() < 0.5:
                status = _put(opened, offset + max(0, start), piece)
                if status != abi.OK:
                    return status
        return abi.OK


def _error(disk: Disk, call: Call) -> int:
    return _ERRORS.get((disk, call), _OTHER_ERRORS[call])


def _put(opened: Open, place: int, data: bytes | None) -> int:
    if data is None:
        return int(opened.methods.xTruncate(opened.real, place))
    return int(opened.methods.xWrite(opened.real, ctypes.cast(c_char_p(data), c_void_p), len(data), place))


def _content(opened: Open) -> bytearray:
    size = c_int64()
    opened.methods.xFileSize(opened.real, ctypes.byref(size))
    if not size.value:
        return bytearray()
    content = (ctypes.c_char * size.value)()
    status = opened.methods.xRead(opened.real, ctypes.byref(content), c_int(size.value), c_int64(0))
    if status != abi.OK:
        raise OSError(f"cannot read what is there: status {status}")
    return bytearray(content.raw)
