"""Several processes: programs under torchrun, and functions in what torchrun would start, which costs no imports.

The functions' processes are forked from one that has imported everything and started no threads.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile

import torch

from progdistill.core.processes import end_process

_FORKS = multiprocessing.get_context("forkserver")
# PyTorch's first optimizer imports _dynamo, which takes longer than all else.
_FORKS.set_forkserver_preload(["torch._dynamo", "progdistill.cli.main", "progdistill.evaluation"])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(count: int, *arguments, **options) -> subprocess.CompletedProcess:
    """Starts a program (its path and arguments) that many times, on one thread each; has its output as text."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    command += [f"--master_port={free_port()}", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)


def _run(environment: dict, output: str, function, arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    end_process(int(function(*arguments) or 0))


def run_forked(count: int, function, *arguments) -> str:
    """Calls a function of a module in that many processes; returns what they printed.

    One process is none of torchrun's. A result other than None and 0 is an error, as for a program.
    """
    port = str(free_port())
    with tempfile.NamedTemporaryFile("r") as output:
        processes = []
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            given = ({**os.environ, **(place if count > 1 else {})}, output.name, function, arguments)
            processes.append(_FORKS.Process(target=_run, args=given))
            processes[-1].start()
        for process in processes:
            process.join(timeout=300)
        states = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        printed = output.read()
    assert states == [0] * count, (states, printed)
    return printed
