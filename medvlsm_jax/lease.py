"""A folder has one program that writes to it: who holds its lease.

A lease is a small json file in the folder, which the holder renews every few seconds and removes at its end. However a
holder ends, others go on: where it can be seen that its process is gone, at once; else, for it may be on another host,
when the lease was not renewed for DURATION. That is found by watching it with a clock of our own, for clocks differ.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, runtime_checkable

from medvlsm_jax.errors import UserError

FILE = ".lease.json"  # in the folder
DURATION = 30.0  # seconds without a renewal after which another program takes a lease
RENEWALS = 6  # in that time
POLL = 0.1  # seconds between looks at a lease that is watched
SETTLE = 2.0  # seconds after which a lease is looked at again, where files cannot be locked
SIZE = 2048  # bytes of the file: always as many, so that it is replaced by one write
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF)
EXIT_TERMINATED = 128 + signal.SIGTERM

HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # by this program, in this context


# --- Where a lease lies -----------------------------------------------------------------------------------------------


@runtime_checkable
class LeaseStore(Protocol):
    """Where a lease lies: a file here, and whatever else can replace a content that is still the one last seen."""

    def read(self) -> bytes | None:
        """The content; None where there is none."""
        ...

    def create(self, content: bytes) -> bool:
        """Writes a content where there is none; says whether it did."""
        ...

    def replace(self, old: bytes, new: bytes) -> bool:
        """Writes a content in place of another; says whether that was still there."""
        ...

    def remove(self, old: bytes) -> None:
        """Removes a content if it is still there."""
        ...


class LeaseFile:
    """A lease as a file. What is compared and written is under the kernel's lock, which dies with its process."""

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> bool:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
        except OSError:  # the disk is full
            self.path.unlink(missing_ok=True)
            raise
        return True

    def replace(self, old: bytes, new: bytes) -> bool:
        with self._opened(old) as (file, is_locked):
            if file is None:
                return False
            os.pwrite(file, new, 0)
        if is_locked:
            return True
        time.sleep(SETTLE)
        return self.read() == new

    def remove(self, old: bytes) -> None:
        with self._opened(old) as (file, _):
            if file is not None:
                self.path.unlink()

    @contextlib.contextmanager
    def _opened(self, content: bytes) -> Iterator[tuple[int | None, bool]]:
        """The open file if it holds the content, else None; and whether it is locked."""
        with contextlib.ExitStack() as stack:
            is_locked = True
            try:
                file = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                yield None, is_locked
                return
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # others have it for as long as they compare and write
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                is_locked = False
            is_there = self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat())
            is_same = is_there and os.pread(file, SIZE + 1, 0) == content
            yield file if is_same else None, is_locked


# --- Who holds it -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Holder:
    """A program that holds a lease.

    Attributes:
        id: drawn; of this lease alone.
        program: what it is called.
        host: its name.
        machine: kernel and process namespace, in which a process id says which process is meant; empty: not known.
        pid: of its process.
        born: when that process started, in clock ticks of its machine.
        since: when the lease was taken, by its clock.
        duration: seconds without a renewal after which the lease has run out.
        renewals: how often it was renewed.
    """

    id: str
    program: str
    host: str
    machine: str
    pid: int
    born: int
    since: str
    duration: float
    renewals: int = 0

    def to_bytes(self) -> bytes:
        """The content of a lease."""
        return json.dumps(dataclasses.asdict(self)).encode().ljust(SIZE - 1) + b"\n"

    def is_on(self, other: "Holder") -> bool:
        """Whether its process id means the same process to another program."""
        return bool(self.machine) and (self.machine, self.host) == (other.machine, other.host)

    def __str__(self) -> str:
        return f"{self.program} (process {self.pid} on {self.host}) since {self.since}"


def read_holder(content: bytes) -> Holder | None:
    """Who a content says that holds the lease; None where it says nothing, for it is just being written."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def this_program(duration: float) -> Holder:
    """This program as a holder."""
    pid, program = os.getpid(), Path(sys.argv[0] or "python").name
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Holder(
        secrets.token_hex(8), program, socket.gethostname(), find_machine(), pid, find_birth(pid) or 0, since, duration
    )


def find_machine() -> str:
    """Kernel and process namespace of this process; empty where the system does not tell (macOS)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def find_birth(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since the machine did; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat[stat.rfind(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    return None if state in (b"Z", b"X") else int(fields[18])  # field 22 of proc(5); a zombie has ended


# --- Taking and holding -----------------------------------------------------------------------------------------------


class Lease:
    """A lease that this program has, and renews in a thread until `release`."""

    def __init__(self, store: LeaseStore, holder: Holder, on_loss: Callable[[Holder], object]):
        """Takes over what `take` has written.

        Args:
            store: where it lies.
            holder: this program.
            on_loss: is called, in the thread, with the program that has taken the lease while this one was suspended.
        """
        self.store, self.holder, self.on_loss = store, holder, on_loss
        self.is_released = threading.Event()
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def _renew(self) -> None:
        while not self.is_released.wait(self.holder.duration / RENEWALS):
            renewed = dataclasses.replace(self.holder, renewals=self.holder.renewals + 1)
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                content = renewed.to_bytes()
                # Created anew where somebody has removed it by hand.
                if self.store.replace(self.holder.to_bytes(), content) or self.store.create(content):
                    self.holder = renewed
                elif (found := read_holder(self.store.read() or b"")) is None:
                    continue
                elif found.id == self.holder.id:  # written, although the disk said that it was not
                    self.holder = found
                else:
                    self.on_loss(found)
                    return

    def release(self) -> None:
        """Gives it back; in a forked copy of the program, nothing."""
        if os.getpid() == self.holder.pid:
            self.is_released.set()
            self.thread.join()
            with contextlib.suppress(OSError):
                self.store.remove(self.holder.to_bytes())


def take(store: LeaseStore, holder: Holder, on_wait: Callable[[Holder | None, float], object]) -> Holder | None:
    """Takes a lease; returns who has it if another program does.

    Args:
        store: where it lies.
        holder: this program.
        on_wait: is called once if the lease has to be watched, with who held it and for how many seconds at most.
    """
    seen, since, is_told = None, 0.0, False
    while True:
        content = store.read()
        if content is None:
            if store.create(holder.to_bytes()):
                return None
            continue
        other = read_holder(content)
        if other is not None and other.is_on(holder):
            if find_birth(other.pid) == other.born:
                return other
            if store.replace(content, holder.to_bytes()):
                return None
            continue
        if seen is None:
            seen, since = content, time.monotonic()
        elif content != seen and other is not None:
            return other
        duration = holder.duration if other is None else other.duration
        if time.monotonic() - since >= duration and store.replace(content, holder.to_bytes()):
            return None
        if not is_told and time.monotonic() - since > POLL:
            on_wait(other, duration)
            is_told = True
        time.sleep(POLL)


@contextlib.contextmanager
def holding(flag: str, folder: Path, duration: float | None = None) -> Iterator[None]:
    """Holds the lease of a folder, which is made where it is missing, and gone again if nothing was written to it.

    A program that holds it already, as one that calls another does, goes on. Meanwhile SIGTERM ends the program by an
    exception, so that the lease is given back, unless the program listens to it itself.

    Args:
        flag: that names the folder.
        folder: of this machine, or shared by several.
        duration: seconds without a renewal after which others take it; DURATION when it is not given.

    Raises:
        UserError: another program holds it, or nothing can be written there.
    """
    place = folder.resolve()
    if place in HELD.get():
        yield
        return
    where, made = f"{flag}={folder}", []
    store, holder = LeaseFile(place), this_program(DURATION if duration is None else duration)
    try:
        made = missing_folders(place)
        other = take_in_folder(store, place, holder, where)
    except OSError as error:
        remove_empty(made)
        raise UserError(f"{where} cannot be written ({error.strerror}): choose another folder") from error
    if other is not None:
        raise UserError(f"{where} is in use by {other}: wait for its end, stop it, or choose another folder")
    lease = Lease(store, holder, lambda found: end_program(where, found))
    token = HELD.set(HELD.get() | {place})
    try:
        with ending_on_sigterm():
            yield
    finally:
        HELD.reset(token)
        lease.release()
        remove_empty(made)


def take_in_folder(store: LeaseStore, folder: Path, holder: Holder, where: str) -> Holder | None:
    """`take`, of a folder that is made first."""

    def tell(other: Holder | None, seconds: float) -> None:
        user = f"its last user, {other}," if other else "its last user"
        print(f"waiting up to {seconds:.0f} s for {where}: {user} may have been killed", file=sys.stderr, flush=True)

    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return take(store, holder, tell)
        except FileNotFoundError:  # another program that had made the folder has just removed it
            if folder.is_dir():
                raise


def end_program(where: str, other: Holder) -> NoReturn:
    """Ends this program before it writes to a folder that is another's, by an error's line and status 2."""
    print(
        f"error: {where} was taken by {other}, while this program was suspended: it ends", file=sys.stderr, flush=True
    )
    os._exit(2)


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Removes folders as long as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Makes an exception of SIGTERM where it would end the program at once."""

    def end(number: int, frame: FrameType | None) -> Any:
        raise SystemExit(EXIT_TERMINATED)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
