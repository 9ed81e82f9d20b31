"""A real Slurm cluster of several nodes on this machine, for tests: as root, without systemd, all in one folder.

Every node is a slurmd. Where namespaces are allowed it has its own host name and process ids, so that killing it kills
all that runs on it, as a power failure does.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
# A requeued job waits for this many seconds; 120 by default, 5 is the least.
AuthInfo=cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
KillWait=30
InactiveLimit=0
MinJobAge=86400
FirstJobId={first_job}
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=usual Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=2 PreemptMode=OFF
"""
# A fake GPU must be a character device.
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
WITH_THIS_PROCESS = ["setpriv", "--pdeathsig", "KILL"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"}


def why_no_cluster() -> str | None:
    """Return what this machine lacks for a cluster; None where nothing is missing."""
    if os.geteuid() != 0:
        return "a Slurm cluster for tests needs root"
    missing = [name for name in ("slurmctld", "slurmd", "srun", "setpriv") if shutil.which(name) is None]
    return f"{', '.join(missing)} not found: apt-get install slurm-wlm" if missing else None


class SlurmCluster:
    """Nodes node1, node2 ... of 8 CPUs and 2 fake GPUs; use as a context manager."""

    def __init__(self, root: Path, nodes: int) -> None:
        self.root, self.names = root.resolve(), [f"node{i + 1}" for i in range(nodes)]
        can_unshare = subprocess.run(
            ["unshare", "--uts", "--mount", "--pid", "--fork", "true"], check=False, capture_output=True
        )
        self.isolated = can_unshare.returncode == 0
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment["SLURM_CONF"] = str(self.root / "slurm.conf")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "SlurmCluster":
        self._configure()
        try:
            self._start("slurmctld", ["slurmctld", "-D"])
            # A slurmd that finds no controller waits for a second before it asks again.
            self._wait(lambda: self._answers("scontrol", "ping"), "slurmctld")
            for name in self.names:
                self.start_node(name)
            self._wait(lambda: all(state == "idle" for state in self.node_states().values()), "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            self._answers("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()
        self._kill_jobs()

    def _configure(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "state").mkdir()
        ports = [_free_port() for _ in range(len(self.names) + 1)]
        host = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={name if self.isolated else host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=16000 Gres=gpu:2 State=UNKNOWN"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        # Lightning's rendezvous takes its port from the job's id: clusters side by side need different ones.
        first_job = 1000 + ports[0] % 8000
        text = CONFIGURATION.format(
            host=host, port=ports[0], root=self.root, nodes="\n".join(nodes), first_job=first_job
        )
        (self.root / "slurm.conf").write_text(text)
        # The one cgroup plugin that loads without a cgroup mount or systemd; slurmd loads one even where none is used.
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.root / "gres.conf").write_text(GPUS)
        names = " ".join(["localhost", host, *self.names])
        (self.root / "hosts").write_text(f"127.0.0.1 {names}\n")

    def _start(self, name: str, command: list[str]) -> None:
        # In a session of its own, which a Ctrl-C in pytest does not reach.
        with (self.root / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [*WITH_THIS_PROCESS, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.root,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        """Start a node, also one that was killed."""
        command = ["slurmd", "-D", "-N", name]
        if self.isolated:
            inside = f"hostname {name}; mount --bind {self.root}/hosts /etc/hosts; {' '.join(command)} & wait $!"
            namespaces = ["--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command = ["unshare", *namespaces, "sh", "-c", inside]
        self._start(name, command)

    def kill_node(self, name: str) -> None:
        """Kill a node and all that runs on it; Slurm notices by itself after 25 to 30 s."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def node_states(self) -> dict[str, str]:
        """Return each node's state."""
        lines = self.run("sinfo", "-hN", "-p", "usual", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def run(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands, and return what it prints."""
        whole = self.environment | dict(environment or {})
        done = subprocess.run(command, env=whole, cwd=cwd, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> str:
        """Submit a batch script from a folder, and return the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, environment=environment).strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what ``scontrol show job`` says."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of the states, by default ended, and return its record."""
        wanted = set(states) or ENDED
        end = time.monotonic() + seconds
        while (record := self.job(job))["JobState"] not in wanted:
            assert time.monotonic() < end, f"job {job} is {record['JobState']} after {seconds} s, not {wanted}"
            time.sleep(0.1)
        return record

    def _answers(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, check=False, capture_output=True).returncode == 0

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 20
        while not ready():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            said = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.root.glob("*.out"))
            assert not dead, f"no {what}: {dead} ended\n{said}"
            assert time.monotonic() < end, f"no {what}\n{said}"
            time.sleep(0.02)

    def _kill_jobs(self) -> None:
        """Kill the jobs' processes, which are meant to outlive a slurmd that is restarted."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # it has ended
                continue


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
