"""Hosts made of Linux namespaces: each with a name, a network card and processes of its own.

    with Hosts(folder, "ab") as hosts:
        process = hosts["a"].start("python", "-m", …)
        hosts.lose("b", 1.0)  # from here on, no packet reaches b, and none leaves it

They share the disks, and each knows the others by name. A switch, in a namespace of its own, joins
them; nothing is seen or changed outside. Whatever ends the process that made them ends them too:
the kernel removes a namespace with the last process in it.
"""

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from tests.running import ROOT, environment

SWITCH = "10.0.0.254"
"""The switch's address: what runs in a test may listen there, see `Hosts.at_the_switch`."""

Process = subprocess.Popen[bytes]

GRACE = 15

CLONE_NEWNET = 0x40000000  # linux/sched.h

_APART = ["--net", "--uts", "--mount", "--propagation", "private", "--pid", "--mount-proc"]
_WAIT = "echo ready; exec sleep infinity"


class Host:
    """A set of namespaces.

    Attributes:
        name: its host name.
        pid: a process in it, its number 1, with which all others end.
    """

    def __init__(self, name: str, script: str, *words: object) -> None:
        self.name = name
        self._started: list[Process] = []
        apart = ["unshare", *_APART, "--fork", "--kill-child"]
        shell = ["sh", "-ec", f"{script}\n{_WAIT}", "sh", *map(str, words)]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *apart, *shell], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as said:
            assert said.readline() == b"ready\n"
        (child,) = psutil.Process(self._holder.pid).children()
        self.pid: int = child.pid

    def start(self, *words: object, output: IO[bytes] | None = None, **more: str) -> Process:
        """Start a command here, with these variables beside this process's.

        Args:
            words: the command.
            output: where it writes; by default where this process does.
            more: the variables.
        """
        enter = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid"]
        process = subprocess.Popen(
            [*enter, f"--wd={ROOT}", *map(str, words)],
            env=environment() | more,
            stdout=output,
            stderr=output,
        )
        self._started.append(process)
        return process

    def run(self, *words: object) -> None:
        """Run a command of the network's here."""
        subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", *map(str, words)],
            check=True,
            capture_output=True,
            text=True,
        )

    def stop(self) -> None:
        """Stop the ranks here: their processes live, their connections stay, they do nothing."""
        for process in self._started:
            signal_ranks(process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill the ranks here, not what started them."""
        for process in self._started:
            signal_ranks(process.pid, signal.SIGKILL)

    def die(self) -> None:
        """End all its processes at once; the network tells the others, as for any that end."""
        self._holder.kill()
        for process in (self._holder, *self._started):
            process.wait()


class Hosts:
    """Hosts that are joined by a switch.

    Args:
        folder: scratch.
        names: a name for each, of one word; the k-th, from 1, has the address 10.0.0.k.
        known: whether a host's own name stands for its address; else for one that it alone
            reaches, 127.0.1.1, as Debian has it.
    """

    def __init__(self, folder: Path, names: str, known: bool = True) -> None:
        self.names = {name: f"10.0.0.{number}" for number, name in enumerate(names, 1)}
        self.folder, self._known = folder, known
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        try:
            script = "ip link add switch type bridge; ip link set switch up; ip link set lo up"
            script += f"; ip address add {SWITCH}/24 dev switch"
            self._switch = self._hosts["switch"] = Host("switch", script)
            for name in self.names:
                self.add(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def add(self, name: str) -> Host:
        """Make a host, again after it has died."""
        own = self.names | ({} if self._known else {name: "127.0.1.1"})
        file = self.folder / f"hosts-{name}"
        lines = [f"{address} {each}\n" for each, address in own.items()]
        file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        script = 'echo "$1" > /proc/sys/kernel/hostname; mount --bind "$2" /etc/hosts'
        host = self._hosts[name] = Host(name, f"{script}; ip link set lo up", name, file)
        card = ["ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0"]
        self._switch.run(*card, "netns", host.pid)
        self._switch.run("ip", "link", "set", f"to-{name}", "master", "switch", "up")
        host.run("ip", "address", "add", f"{self.names[name]}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self._switch.run("tc", "qdisc", "add", "dev", f"to-{name}", "clsact")
        return host

    def lose(self, name: str, share: float) -> None:
        """Lose so large a share of the packets to a host, and of those from it."""
        # Classic BPF instead of netem, which a kernel may not have: A = random; drop the packet if
        # A ≥ limit, else let it pass (linux/filter.h, linux/bpf_common.h)
        limit = min(round((1 - share) * 2**32), 2**32 - 1)
        program = f"4,32 0 0 4294963256,53 0 1 {limit},6 0 0 2,6 0 0 0"
        for way in ("ingress", "egress"):
            words = ["tc", "filter", "replace", "dev", f"to-{name}", way, "prio", 1, "handle", 1]
            self._switch.run(*words, "protocol", "all", "bpf", "direct-action", "bytecode", program)

    @contextmanager
    def at_the_switch(self) -> Iterator[None]:
        """Within the block, sockets of this thread, and of those that it starts, are there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path(f"/proc/{self._switch.pid}/ns/net").open() as there:
                assert libc.setns(there.fileno(), CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), CLONE_NEWNET) == 0

    def close(self) -> None:
        for host in self._hosts.values():
            host.die()


def signal_ranks(pid: int, number: signal.Signals, rank: str | None = None) -> None:
    """Send a signal to the ranks below a process, or to one of them."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            found = process.environ().get("RANK")
            if found is not None and rank in (None, found):
                process.send_signal(number)


def why_not() -> str | None:
    """Why such hosts cannot be made here."""
    programs = ("ip", "tc", "unshare", "nsenter", "setpriv", "mount")
    if lacking := [name for name in programs if shutil.which(name) is None]:
        return f"no {', '.join(lacking)}"
    script = "ip link add name a type veth peer name b; tc qdisc add dev a clsact"
    script += "; tc filter add dev a egress bpf direct-action bytecode '1,6 0 0 2'"
    tried = subprocess.run(
        ["unshare", *_APART, "--fork", "sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
    )
    said = tried.stderr.strip().splitlines()
    return f"no network namespaces ({said[-1:]})" if tried.returncode else None


def torchrun(
    hosts: Hosts,
    name: str,
    words: Sequence[object],
    *options: object,
    output: IO[bytes] | None = None,
    **more: str,
) -> Process:
    """Start a rank of a module, with its words, on a host; the first host has torchrun's store."""
    first, *others = hosts.names
    options += ("--nnodes", 1 + len(others), "--node-rank", [*hosts.names].index(name))
    options += ("--nproc-per-node", 1, "--master-addr", first, "--master-port", 29400)
    options += ("--log-dir", hosts.folder / f"torchrun-{name}")  # else in TMPDIR, where it stays
    program = [sys.executable, "-m", "torch.distributed.run"]
    return hosts[name].start(*program, *options, "-m", "--", *words, output=output, **more)


def main() -> None:
    """Train on hosts a and b: `-m tests.hosts FOLDER LOSS FLAGS…`.

    LOSS is the share of packets that are lost. At SIGUSR1 b becomes unreachable. When one host ends
    with an error, the other has `GRACE` seconds to do so, as queues have it; the status is 1.
    """
    folder, loss, *flags = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    with Hosts(Path(folder), "ab") as hosts:
        signal.signal(signal.SIGUSR1, lambda *_: hosts.lose("b", 1.0))
        for name in hosts.names:
            hosts.lose(name, float(loss))
        words = ["tests.impatient", *flags]
        running = [torchrun(hosts, name, words, IMPATIENT="6") for name in hosts.names]
        failed = 0.0
        while any(process.poll() is None for process in running) and failed < GRACE:
            time.sleep(0.1)
            failed += 0.1 if any(process.poll() for process in running) else 0.0
        status = int(any(process.poll() != 0 for process in running))
    sys.exit(status)


if __name__ == "__main__":
    main()
