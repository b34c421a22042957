"""What the fault suite and a disk that fails agree on, in a file that both processes have in memory."""

import mmap
import struct
from enum import IntEnum, IntFlag
from pathlib import Path

_FIELDS = struct.Struct("=6I")  # armed, disk, nth, forever, calls, failed
_ARMED, _DISK, _NTH, _FOREVER, _CALLS, _FAILED = range(0, _FIELDS.size, 4)


class Call(IntFlag):
    """What SQLite asks of a file system."""

    OPEN = 1
    READ = 2
    WRITE = 4
    SYNC = 8
    TRUNCATE = 16
    DELETE = 32
    SHM = 64


class Disk(IntEnum):
    """What is wrong with the disk: ENOSPC, EIO or EROFS."""

    FULL = 0
    BROKEN = 1
    READ_ONLY = 2


# A full disk can be read and tidied up; a read-only one can be read, and has nothing to write back.
AFFECTED = {
    Disk.FULL: Call.OPEN | Call.WRITE | Call.SYNC | Call.SHM,
    Disk.BROKEN: Call.OPEN | Call.READ | Call.WRITE | Call.SYNC | Call.TRUNCATE | Call.DELETE | Call.SHM,
    Disk.READ_ONLY: Call.OPEN | Call.WRITE | Call.TRUNCATE | Call.DELETE | Call.SHM,
}


class Panel:
    """Decides which call fails; one side sets it, the other asks it.

    Each word is written by one side at a time: a disk counts while it is armed, and is set while it is not.
    """

    def __init__(self, path: Path) -> None:
        """Open the panel in the file at `path`, which is made when missing."""
        if not path.exists():
            path.write_bytes(bytes(_FIELDS.size))
        with path.open("r+b") as file:
            self._words = mmap.mmap(file.fileno(), _FIELDS.size)

    def arm(self, disk: Disk, nth: int, *, forever: bool) -> None:
        """Let the `nth` call from now on that such a disk affects fail, counted from 1, and with `forever`
        all later ones; 0 fails none and counts."""
        self.disarm()
        for place, value in ((_DISK, disk), (_NTH, nth), (_FOREVER, forever), (_CALLS, 0), (_FAILED, 0)):
            self._write(place, value)
        self._write(_ARMED, 1)

    def disarm(self) -> None:
        """Let nothing fail from now on."""
        self._write(_ARMED, 0)

    @property
    def calls(self) -> int:
        """Calls since it was armed that such a disk affects."""
        return self._read(_CALLS)

    @property
    def failed(self) -> int:
        """Those of them that failed."""
        return self._read(_FAILED)

    def fails(self, call: Call) -> Disk | None:
        """Count a call; the disk that it fails with, or None."""
        if not self._read(_ARMED):
            return None
        disk = Disk(self._read(_DISK))
        if call not in AFFECTED[disk]:
            return None
        calls, nth = self._read(_CALLS) + 1, self._read(_NTH)
        self._write(_CALLS, calls)
        if nth and (calls == nth or (calls > nth and self._read(_FOREVER))):
            self._write(_FAILED, self._read(_FAILED) + 1)
            return disk
        return None

    def _read(self, place: int) -> int:
        return int.from_bytes(self._words[place : place + 4], "little")

    def _write(self, place: int, value: int) -> None:
        self._words[place : place + 4] = int(value).to_bytes(4, "little")
