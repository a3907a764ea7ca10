"""A crew of Ray actors: each computes one task after the other, and is asked again and again what it has to say.

Knows nothing about clusters as a whole, or what tasks compute.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    NodeDiedError,
    RayError,
    RayTaskError,
    RpcError,
    TaskUnschedulableError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from maskloom.errors import UserError
from maskloom.executors.bench import Bench, Loss, Message, Opening, Order
from maskloom.executors.children import portable
from maskloom.executors.fence import Fence
from maskloom.executors.nodes import PROBE_SECONDS, Look, Node, alive_nodes, look_around
from maskloom.executors.pool import MOST_STARTS
from maskloom.executors.tasks import Shared

try:
    from grpc import RpcError as ClientError  # type: ignore[import-untyped]  # of Ray's client
except ImportError:  # nothing else of Ray needs it
    ClientError = RpcError

if TYPE_CHECKING:
    from maskloom.executors.cluster import Cluster

HEAR_SECONDS = 2.0
"""So long an actor that has nothing to say is waited for before it is asked anew."""
ROOM_SECONDS = 30.0
"""A worker that is not there after so long is told of: something else has what it needs, mostly."""
LEAVE_SECONDS = 5.0
"""So long actors that are asked to leave are waited for."""
_WAKE_SECONDS = 0.1  # Ray cannot be waited for together with anything else


class Post:
    """What runs on a node: an actor of three threads, which compute, answer, and take interruptions."""

    def __init__(self, opening: Opening, place: str) -> None:
        self._said: deque[Message] = deque()
        self._changed = threading.Condition()
        self._bench = Bench(opening, self._say, place=place)
        self._fence = Fence()
        self._values: dict[int, Any] = {}
        self._bench.prepare()

    def ready(self) -> bool:
        """Returns once the worker is there."""
        return True

    def compute(self, order: Order, references: list[Any]) -> None:
        """Computes a task; how it ended is the last thing that is said of it."""

        def shared() -> Any:
            if order.shared not in self._values:
                self._values = {order.shared: ray.get(references[0])}
            return self._values[order.shared]

        with self._fence.at_work():
            self._bench.compute(order, shared)

    def hear(self) -> list[Message]:
        """Returns what there is to say, as soon as there is something."""
        with self._changed:
            if not self._said:
                self._changed.wait(HEAR_SECONDS)
            found = list(self._said)
            self._said.clear()
        self._fence.asked()
        return found

    def interrupt(self, number: int) -> None:
        """Interrupts a task when it next says how far it is."""
        self._bench.interrupt(number)

    def leave(self) -> None:
        """Ends this process at once."""
        os._exit(0)

    def _say(self, message: Message) -> None:
        with self._changed:
            self._said.append(message)
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one worker on a node."""

    node: str
    """Its id."""
    name: str
    """Its host."""
    number: int


@dataclass(slots=True)
class _Actor:
    handle: Any
    slot: Slot
    starts: int
    """How often in a row one was started here without being given a task."""
    order: int = -1
    """The number of the task that it was sent last."""
    is_busy: bool = False
    begun: float = field(default_factory=time.monotonic)
    is_killed: bool = False
    """Whether it was to be ended: Ray then calls it dead without having asked its node."""
    is_late: bool = False
    """Whether it was told that it is not there yet."""
    waited_for: dict[Any, str] = field(default_factory=dict)
    """What was asked of it and is not answered yet, and which of its methods that was."""


class Actors:
    """The crew."""

    def __init__(self, cluster: Cluster, opening: Opening, look: Look) -> None:
        self._cluster, self._opening, self._look, self._head = cluster, opening, look, cluster.head
        self._threads = opening.threads or 1
        self._nodes: dict[str, Node] = {}  # that see what is shared
        self._refused: set[str] = set()
        self._workers: dict[int, _Actor] = {}
        self._num_started = 0
        self._wake = threading.Event()
        self._put: tuple[Shared, Any] | None = None
        self._looking: dict[Any, Node] = {}

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    def begin(self, nodes: Sequence[Node]) -> None:
        """Starts the first workers; raises ``UserError`` for a node that does not see what is shared.

        A node that is gone is left out, as long as another one is there: Ray calls it alive for some time yet.
        """
        gone = []
        with self._losses_told():
            asked = {node: self._ask(node) for node in nodes}
            for node, reference in asked.items():
                try:
                    missing = self._look.missing(node.name, ray.get(reference, timeout=PROBE_SECONDS))
                except GetTimeoutError:
                    missing = f"node {node.name}: found no answer within {PROBE_SECONDS:.0f} s; look at `ray status`"
                except RpcError:
                    raise  # of the head
                except RayError as error:
                    if isinstance(error, TaskUnschedulableError | NodeDiedError) or node.id not in self._alive():
                        gone.append(f"node {node.name}: is gone ({_short(error)}); look at `ray status`")
                        continue
                    missing = f"node {node.name}: cannot take part ({_short(error)}); install maskloom there as here"
                if missing is not None:
                    raise UserError(missing)
                self._nodes[node.id] = node
            if gone and not self._nodes:
                raise UserError(gone[0])
            self._fill()

    def send(self, worker: int, order: Order, shared: Shared) -> None:
        """Gives an actor a task, and a reference to the shared value, which every node fetches once."""
        known = self._workers.get(worker)
        if known is None:
            return
        with self._losses_told():
            if self._put is None or self._put[0] is not shared:
                self._put = (shared, ray.put(shared.value))
            known.starts, known.order, known.is_busy = 0, order.number, True
            known.waited_for[known.handle.compute.remote(order, [self._put[1]])] = "compute"
            self._listen(known)

    def poll(self, seconds: float) -> Iterator[tuple[int, Message]]:
        """Yields what actors said and which of them are lost; looks at the cluster now and then."""
        with self._losses_told():
            if self._head.is_due():
                yield from self._look_at_cluster()
            by_reference = {ref: number for number, known in self._workers.items() for ref in known.waited_for}
            waiting = [*by_reference, *self._looking]
            for reference in self._answered(waiting, seconds):
                if reference in self._looking:
                    yield from self._take_in(reference)
                elif (number := by_reference[reference]) in self._workers:
                    yield from self._heard(number, reference)

    def _answered(self, waiting: list[Any], seconds: float) -> list[Any]:
        """Returns what was answered, after so many seconds at most, and at once after ``wake``."""
        ends = time.monotonic() + seconds
        found: list[Any] = []
        while not found and not self._wake.is_set() and time.monotonic() < ends:
            if waiting:
                found, _ = ray.wait(waiting, num_returns=1, timeout=_WAKE_SECONDS)
            else:
                self._wake.wait(_WAKE_SECONDS)
        self._wake.clear()
        if found:
            found, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return found

    @contextmanager
    def _losses_told(self) -> Iterator[None]:
        """Turns what Ray says where it has lost the head into a line."""
        try:
            yield
        except (ConnectionError, RpcError, ClientError) as error:
            self._head.give_up()
            raise UserError(self._head.lost()) from error

    def wake(self) -> None:
        """Ends a ``poll`` that waits, soon."""
        self._wake.set()

    def interrupt(self, worker: int) -> None:
        """Asks an actor to interrupt its task."""
        known = self._workers.get(worker)
        if known is not None:
            with self._losses_told():
                known.handle.interrupt.remote(known.order)

    def kill(self, worker: int) -> None:
        """Ends an actor at once."""
        if worker in self._workers:
            self._workers[worker].is_killed = True
            with self._losses_told():
                ray.kill(self._workers[worker].handle)

    def close(self) -> None:
        """Ends all actors: where the head is gone, by asking each, since Ray ends them through the head."""
        handles = [known.handle for known in self._workers.values()]
        self._workers.clear()
        if not self._head.is_lost and self._head.answers():
            for handle in handles:
                with suppress(Exception):  # of a cluster that is gone
                    ray.kill(handle)
        elif handles and not self._head.is_client_port:
            with suppress(Exception):
                asked = [handle.leave.remote() for handle in handles]
                ray.wait(asked, num_returns=len(asked), timeout=LEAVE_SECONDS)

    def _ask(self, node: Node) -> Any:
        self._look.place()
        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        return ray.remote(look_around).options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(self._look)

    def _fill(self) -> None:
        """Starts workers wherever there is room, up to as many as were asked for."""
        taken = {known.slot for known in self._workers.values()}
        room = [
            Slot(node.id, node.name, number)
            for node in self._nodes.values()
            for number in range(self._cluster.room(node, self._threads))
        ]
        free = [slot for slot in room if slot not in taken]
        limit = self._cluster.processes
        for slot in free if limit is None else free[: max(limit - self.size, 0)]:
            self._start(slot, 1)

    def _start(self, slot: Slot, starts: int) -> None:
        place = NodeAffinitySchedulingStrategy(slot.node, soft=False)
        actor = ray.remote(Post).options(
            num_cpus=self._threads,
            num_gpus=1 if self._cluster.kind == "cuda" else 0,
            max_restarts=0,
            max_concurrency=3,
            scheduling_strategy=place,
        )
        handle = actor.remote(self._opening, f"worker {slot.number + 1} of {slot.name}")
        self._num_started += 1
        self._workers[self._num_started] = known = _Actor(handle, slot, starts)
        known.waited_for[handle.ready.remote()] = "ready"

    def _listen(self, known: _Actor) -> None:
        if "hear" not in known.waited_for.values():
            known.waited_for[known.handle.hear.remote()] = "hear"

    def _heard(self, number: int, reference: Any) -> Iterator[tuple[int, Message]]:
        """Yields what an answer says; an actor that is lost is replaced while its node is there."""
        known = self._workers[number]
        kind = known.waited_for.pop(reference)
        try:
            answer = ray.get(reference)
        except RpcError:
            raise  # of the head
        except RayError as error:
            if kind == "compute" and isinstance(error, RayTaskError):  # it was not begun: it cannot be had there
                known.is_busy = False
                cause = error.cause if isinstance(error.cause, Exception) else error
                yield number, Message("failed", known.order, portable(cause))
            else:
                yield from self._lost(number, error)
            return
        if kind == "ready":
            yield number, Message("ready", value=f"node {known.slot.name}")
        elif kind == "hear":
            for message in answer:
                known.is_busy &= message.kind not in ("done", "failed", "interrupted")
                yield number, message
            if known.is_busy and number in self._workers:
                self._listen(known)

    def _lost(self, number: int, error: RayError) -> Iterator[tuple[int, Message]]:
        known = self._workers.pop(number)
        with suppress(Exception):
            ray.kill(known.handle)
        with_node = known.slot.node not in self._alive()
        # That an actor died is known from its node; a node that is called dead may only be out of reach.
        has_ended = isinstance(error, ActorDiedError) and not with_node and not known.is_killed
        how = f"on node {known.slot.name} was lost ({type(error).__name__}: {_short(error)})"
        yield number, Message("lost", value=Loss(how, has_ended=has_ended, with_node=with_node))
        if with_node:
            self._nodes.pop(known.slot.node, None)
            self._fill()  # elsewhere, where fewer were asked for than there is room for
            if not self._workers:
                yield number, Message("note", value="no node is left: waiting for one to join the cluster")
        elif known.starts >= MOST_STARTS:
            text = f"node {known.slot.name}: expected a worker, found {known.starts} that could not be started"
            text += f" ({_short(error)}); look at the logs of Ray there"
            if self._workers:
                self._refused.add(known.slot.node)
                self._nodes.pop(known.slot.node, None)
                yield number, Message("note", value=f"used no more: {text}")
            else:
                yield number, Message("broken", value=text)
        else:
            self._start(known.slot, known.starts + 1)

    def _alive(self) -> set[str]:
        return {node.id for node in alive_nodes()} if self._head.answers() else set()

    def _look_at_cluster(self) -> Iterator[tuple[int, Message]]:
        """Yields that the head is lost, if it is; else asks nodes that have joined what they see."""
        if not self._head.answers():
            if self._head.is_lost:
                yield -1, Message("broken", value=self._head.lost())
            return
        yield from self._late()
        asked = {node.id for node in self._looking.values()} | self._refused
        for node in alive_nodes():
            if node.id not in self._nodes and node.id not in asked:
                self._looking[self._ask(node)] = node

    def _late(self) -> Iterator[tuple[int, Message]]:
        """Yields that workers are not there yet, once of each."""
        late = [
            known
            for known in self._workers.values()
            if not known.is_late
            and "ready" in known.waited_for.values()
            and time.monotonic() - known.begun > ROOM_SECONDS
        ]
        for known in late:
            known.is_late = True
        if late:
            hosts = ", ".join(sorted({known.slot.name for known in late}))
            wanted = f"{self._threads} processor(s){' and a GPU' if self._cluster.kind == 'cuda' else ''}"
            text = f"{len(late)} of {self.size} worker(s) have not started within {ROOM_SECONDS:.0f} s (on {hosts}): "
            yield -1, Message("note", value=f"{text}each asks for {wanted}; `ray status` tells who holds them")

    def _take_in(self, reference: Any) -> Iterator[tuple[int, Message]]:
        """Starts workers on a node that has joined, if it sees what is shared; yields what there is to say of it."""
        node = self._looking.pop(reference)
        try:
            missing = self._look.missing(node.name, ray.get(reference))
        except RayError:
            return  # it is asked again, if it is still there
        if missing is not None:
            self._refused.add(node.id)
            yield -1, Message("note", value=f"not taken in: {missing}")
            return
        self._nodes[node.id] = node
        self._fill()
        yield -1, Message("note", value=f"node {node.name} has joined, {self.size} worker(s) now")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
