"""SQLite's interface to a file system (https://www.sqlite.org/c3ref/vfs.html), for ctypes."""

import _sqlite3
import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

OK = 0
CANTOPEN = 14
FULL = 13
READONLY = 8
IOERR_READ = 266
IOERR_SHORT_READ = 522
IOERR_WRITE = 778
IOERR_FSYNC = 1034
IOERR_TRUNCATE = 1546
IOERR_DELETE = 2570
IOERR_SHMSIZE = 4874
IOERR_SHMMAP = 5386

OPEN_READONLY = 0x1
OPEN_READWRITE = 0x2
OPEN_CREATE = 0x4
OPEN_MAIN_DB = 0x100
ACCESS_EXISTS = 0

_FILE = c_void_p
_VFS = c_void_p

IO_CALLS: dict[str, Any] = {
    "xClose": CFUNCTYPE(c_int, _FILE),
    "xRead": CFUNCTYPE(c_int, _FILE, c_void_p, c_int, c_int64),
    "xWrite": CFUNCTYPE(c_int, _FILE, c_void_p, c_int, c_int64),
    "xTruncate": CFUNCTYPE(c_int, _FILE, c_int64),
    "xSync": CFUNCTYPE(c_int, _FILE, c_int),
    "xFileSize": CFUNCTYPE(c_int, _FILE, POINTER(c_int64)),
    "xLock": CFUNCTYPE(c_int, _FILE, c_int),
    "xUnlock": CFUNCTYPE(c_int, _FILE, c_int),
    "xCheckReservedLock": CFUNCTYPE(c_int, _FILE, POINTER(c_int)),
    "xFileControl": CFUNCTYPE(c_int, _FILE, c_int, c_void_p),
    "xSectorSize": CFUNCTYPE(c_int, _FILE),
    "xDeviceCharacteristics": CFUNCTYPE(c_int, _FILE),
    "xShmMap": CFUNCTYPE(c_int, _FILE, c_int, c_int, c_int, POINTER(c_void_p)),
    "xShmLock": CFUNCTYPE(c_int, _FILE, c_int, c_int, c_int),
    "xShmBarrier": CFUNCTYPE(None, _FILE),
    "xShmUnmap": CFUNCTYPE(c_int, _FILE, c_int),
}
OPEN = CFUNCTYPE(c_int, _VFS, c_void_p, _FILE, c_int, POINTER(c_int))
DELETE = CFUNCTYPE(c_int, _VFS, c_char_p, c_int)
ACCESS = CFUNCTYPE(c_int, _VFS, c_char_p, c_int, POINTER(c_int))


class IoMethods(ctypes.Structure):
    """What can be done with an open file. Version 2: with shared memory, without memory-mapped reads."""

    _fields_ = (("iVersion", c_int), *IO_CALLS.items())


class Vfs(ctypes.Structure):
    """A file system."""

    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", OPEN),
        ("xDelete", DELETE),
        ("xAccess", ACCESS),
        ("xFullPathname", c_void_p),
        ("xDlOpen", c_void_p),
        ("xDlError", c_void_p),
        ("xDlSym", c_void_p),
        ("xDlClose", c_void_p),
        ("xRandomness", c_void_p),
        ("xSleep", c_void_p),
        ("xCurrentTime", c_void_p),
        ("xGetLastError", c_void_p),
        ("xCurrentTimeInt64", c_void_p),
        ("xSetSystemCall", c_void_p),
        ("xGetSystemCall", c_void_p),
        ("xNextSystemCall", c_void_p),
    )


def library() -> ctypes.CDLL:
    """The SQLite that Python's own module uses: linked into the module, or among what it loads, where the
    dynamic loader looks too."""
    sqlite = ctypes.CDLL(_sqlite3.__file__)
    sqlite.sqlite3_vfs_find.restype = POINTER(Vfs)
    sqlite.sqlite3_vfs_find.argtypes = [c_char_p]
    sqlite.sqlite3_vfs_register.restype = c_int
    sqlite.sqlite3_vfs_register.argtypes = [POINTER(Vfs), c_int]
    return sqlite


Method = Callable[..., int | None]
