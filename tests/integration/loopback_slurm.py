"""A real Slurm on this machine's loopback: munged, slurmctld and two slurmd with a count-only GPU each.

    python tests/integration/loopback_slurm.py FOLDER     starts it, stops on ctrl-C

Needs root (the daemons change users), and Debian's `slurmctld slurmd slurm-client munge`. Everything lives in one folder; only
processes started here are ever stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "munged")
NODES = ("node1", "node2")
SYSTEM = Path("/etc/slurm")  # where commands inside jobs look: the executor does not hand SLURM_CONF on
FILES = ("slurm.conf", "gres.conf")


def missing() -> str | None:
    """Why Slurm cannot be started here, or None when it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} missing): apt-get install slurmctld slurmd slurm-client munge"
    if any((SYSTEM / name).exists() for name in FILES):
        return f"{SYSTEM} holds a configuration already: this machine has a Slurm of its own"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """The cluster. Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.processes: dict[str, subprocess.Popen] = {}
        self.env = dict(os.environ)

    def __enter__(self) -> Slurm:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_munge()
            self.configure()
            self.start("slurmctld", "slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*NODES, "slurmctld", "munged"]:
            self.stop(name)
        shutil.rmtree(self.munge, ignore_errors=True)
        for name in FILES:
            if (SYSTEM / name).is_symlink() and (SYSTEM / name).readlink() == self.folder / name:
                (SYSTEM / name).unlink()

    def start_munge(self) -> None:
        """A munged of our own, below /run because munge refuses sockets in folders others may write to."""
        self.munge = Path(f"/run/instant-nk-munge-{os.getpid()}")
        self.munge.mkdir(mode=0o755)
        key = self.munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for path in (self.munge, key):
            shutil.chown(path, "munge", "munge")
        names = ("key", "socket", "pid", "log", "seed")
        key_file, socket_file, pid_file, log_file, seed_file = (str(self.munge / name) for name in names)
        self.socket = socket_file
        self.start(
            "munged", "munged", "--foreground", f"--key-file={key_file}", f"--socket={socket_file}", f"--pid-file={pid_file}", f"--log-file={log_file}", f"--seed-file={seed_file}", user="munge"
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not Path(socket_file).exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"munged did not start: {self.log('munged')}")
            time.sleep(0.1)

    def configure(self) -> None:
        control, *ports = free_ports(1 + len(NODES))
        host, cpus = socket.gethostname(), os.cpu_count()
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        lines = [
            "ClusterName=loopback",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={control}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.socket}",
            "CredType=cred/munge",
            f"StateSaveLocation={state}",
            f"SlurmdSpoolDir={self.folder}/spool-%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd-%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=1",
            "JobAcctGatherParams=OverMemoryKill",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0",
            "MinJobAge=86400",
            "ReturnToService=2",
            "SlurmdTimeout=10",
            "KillWait=2",
            "MpiDefault=none",
            "GresTypes=gpu",
            *(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 Gres=gpu:1" for name, port in zip(NODES, ports)),
            f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "gres.conf").write_text("".join(f"NodeName={name} Name=gpu Count=1 File=/dev/null\n" for name in NODES))
        SYSTEM.mkdir(exist_ok=True)
        for name in FILES:
            (SYSTEM / name).unlink(missing_ok=True)  # a link that a killed test left dangling
            (SYSTEM / name).symlink_to(self.folder / name)

    def start(self, name: str, *command: str, user: str | None = None) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, user=user, start_new_session=True)

    def start_node(self, name: str) -> None:
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self.start(name, "slurmd", "-D", "-N", name)

    def stop(self, name: str, how: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-2000:]

    def ask(self, *command: str) -> str:
        """What a Slurm command prints."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True, timeout=30).stdout

    def wait_until_idle(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                states = dict(line.split() for line in self.ask("sinfo", "-h", "-N", "-o", "%N %t").splitlines())
            except subprocess.CalledProcessError:
                states = {}
            if states and all(state == "idle" for state in states.values()):
                return
            time.sleep(0.5)
        raise RuntimeError(f"Slurm did not come up: {states}\n" + "\n".join(f"{name}: {self.log(name)}" for name in self.processes))


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with Slurm(Path(sys.argv[1])) as cluster:
        print(cluster.ask("sinfo"), flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
