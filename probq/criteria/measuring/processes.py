"""Several processes share the choices of a measurement; each has the network and the data for itself."""

from __future__ import annotations

import copy
import io
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from probq.criteria.measuring.measurement_file import Choice
from probq.criteria.measuring.perturbed import PerturbedNetwork
from probq.utils.errors import ProbqError

Measure = Callable[[PerturbedNetwork, Mapping[str, int]], float]


def in_processes(
    network: PerturbedNetwork, choices: Sequence[Choice], measure: Measure, processes: int
) -> Generator[tuple[Choice, float], None, None]:
    """Yield choices with their values in the order in which processes find them.

    The processes are spawned, share the threads of this one, and end with the iterator.

    Args:
        network: that is measured; each process makes it again from what it was made of.
        choices: to measure.
        measure: a function that other processes find by its name.
        processes: their number, at most that of the choices.

    Raises:
        ProbqError: if the network or the data cannot be sent to a process, or one ends by itself. What is raised in a
            process is raised here.
    """
    left, packed = list(reversed(choices)), _packed(network)
    threads = max(1, torch.get_num_threads() // processes)
    workers: dict[Connection, SpawnProcess] = {}
    busy: dict[Connection, Choice] = {}
    try:
        for _ in range(min(processes, len(choices))):
            connection, process = _started(measure, threads)
            workers[connection], busy[connection] = process, left.pop()
            connection.send_bytes(packed)
            connection.send(busy[connection])
        while busy:
            ready = wait(list(busy))
            for connection in [one for one in busy if one in ready]:
                yield busy.pop(connection), _answer(connection, workers[connection])
                if left:
                    busy[connection] = left.pop()
                    connection.send(busy[connection])
    except (BrokenPipeError, ConnectionResetError, EOFError) as error:
        raise _ended() from error
    finally:
        for connection, process in workers.items():
            process.terminate()
            process.join()
            connection.close()


def _packed(network: PerturbedNetwork) -> bytes:
    """Return a network and its data as bytes, tensors by value."""
    buffer = io.BytesIO()
    try:
        torch.save(network, buffer)
    except Exception as error:  # what a class raises that cannot be pickled is its own
        raise ProbqError(
            f"the network or the data cannot be sent to another process ({error!s:.120}); take processes=1, or define "
            "their classes and functions in a module"
        ) from error
    return buffer.getvalue()


def _unpacked(packed: bytes) -> PerturbedNetwork:
    try:
        network: PerturbedNetwork = torch.load(io.BytesIO(packed), weights_only=False)
    except (AttributeError, ImportError) as error:
        raise ProbqError(
            f"another process cannot make the network again ({error!s:.120}); take processes=1, or define its classes "
            "and functions in a module, not in a notebook"
        ) from error
    return network


def _started(measure: Measure, threads: int) -> tuple[Connection, SpawnProcess]:
    """Return a process that waits for a network: as an argument, a large one would block where the process has died."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, measure, threads), daemon=True)
    process.start()
    there.close()  # so that its end is seen here
    return here, process


def _answer(connection: Connection, process: SpawnProcess) -> float:
    answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return float(answer)


def _ended() -> ProbqError:
    return ProbqError(
        "a process that measured has ended by itself: in a script, what calls it stands below "
        '`if __name__ == "__main__":`; otherwise memory may be short, so take fewer processes'
    )


def _work(connection: Connection, measure: Measure, threads: int) -> None:
    """Measure what comes, until there is nothing more, and send the value or what was raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(threads)
    try:
        network = _unpacked(connection.recv_bytes())
        while True:
            connection.send(measure(network, dict(connection.recv())))
    except EOFError:
        return
    except Exception as error:
        connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return an error with where it was raised, another one where its own class cannot be sent."""
    where = f"raised in a process that measured:\n{traceback.format_exc()}"
    try:
        sent = copy.copy(error)  # as sending does
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(where)
    return sent
