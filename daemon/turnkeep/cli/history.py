"""The tree of a sandbox: its turns, and the checkpoints that were not taken for a turn."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from turnkeep.client import Checkpoint, TurnInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A turn or a checkpoint, and what it started from."""

    key: str
    time_ns: int
    turn: TurnInfo | None = None
    checkpoint: Checkpoint | None = None
    parent: str | None = None
    is_head: bool = False


def tree(turns: Sequence[TurnInfo], checkpoints: Sequence[Checkpoint], head_id: str | None) -> list[Node]:
    """Return all nodes, newest first, each before its parent.

    A turn's parent is the turn it started from, unless another checkpoint (one
    by hand, say) came in between. The head is the newest node with its state.
    """
    by_id = {item.id: item for item in checkpoints}
    numbers = {turn.number: turn for turn in turns}
    own = {item.turn: item for item in checkpoints if item.turn in numbers}
    nodes = [
        Node(
            key=_turn_key(turn.number),
            time_ns=turn.began_at_ns,
            turn=turn,
            checkpoint=by_id.get(turn.checkpoint_id or ""),
            parent=_turn_parent(turn, own.get(turn.number), numbers, by_id),
        )
        for turn in turns
    ]
    nodes += [
        Node(
            key=item.id,
            time_ns=item.created_at_ns,
            checkpoint=item,
            parent=_checkpoint_parent(item, turns, by_id),
        )
        for item in checkpoints
        if item.turn not in numbers
    ]
    return _newest_first(_with_head(nodes, head_id))


def _turn_parent(
    turn: TurnInfo, own: Checkpoint | None, turns: dict[int, TurnInfo], by_id: dict[str, Checkpoint]
) -> str | None:
    started_from = own.parent_id if own else turn.checkpoint_id
    parent = turns.get(turn.parent or 0)
    if parent and (started_from is None or parent.checkpoint_id in (None, started_from)):
        return _turn_key(parent.number)
    start = by_id.get(started_from or "")
    if start is not None:
        return _turn_key(start.turn) if start.turn in turns and start.turn else start.id
    return _turn_key(parent.number) if parent else None


def _checkpoint_parent(
    item: Checkpoint, turns: Sequence[TurnInfo], by_id: dict[str, Checkpoint]
) -> str | None:
    # Skipped turns share their parent's checkpoint: it was taken after the last of them.
    sharing = [
        turn.number
        for turn in turns
        if turn.checkpoint_id == item.parent_id is not None and turn.began_at_ns <= item.created_at_ns
    ]
    if sharing:
        return _turn_key(max(sharing))
    return item.parent_id if item.parent_id in by_id else None


def _turn_key(number: int) -> str:
    return f"turn {number}"


def _with_head(nodes: list[Node], head_id: str | None) -> list[Node]:
    candidates = [node for node in nodes if node.checkpoint and node.checkpoint.id == head_id]
    if not candidates:
        return nodes
    head = max(candidates, key=lambda node: node.time_ns)
    return [_marked(node) if node is head else node for node in nodes]


def _marked(node: Node) -> Node:
    return Node(
        key=node.key,
        time_ns=node.time_ns,
        turn=node.turn,
        checkpoint=node.checkpoint,
        parent=node.parent,
        is_head=True,
    )


def _newest_first(nodes: list[Node]) -> list[Node]:
    """Sort by time, but never a parent before its child, whatever the clocks said."""
    by_key = {node.key: (rank, node) for rank, node in enumerate(nodes)}
    waiting: dict[str, int] = defaultdict(int)
    for node in nodes:
        if node.parent in by_key and node.parent:
            waiting[node.parent] += 1
    ready = [(-node.time_ns, -rank, node.key) for rank, node in by_key.values() if not waiting[node.key]]
    heapq.heapify(ready)
    ordered = []
    while ready:
        _, node = by_key[heapq.heappop(ready)[2]]
        ordered.append(node)
        if node.parent in by_key and node.parent:
            waiting[node.parent] -= 1
            if not waiting[node.parent]:
                rank, parent = by_key[node.parent]
                heapq.heappush(ready, (-parent.time_ns, -rank, parent.key))
    return ordered
