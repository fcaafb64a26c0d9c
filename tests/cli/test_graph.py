"""The tree beside the log."""

from __future__ import annotations

import turnkeep
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.cli import graph, history

from tests.client.fake_daemon import FakeDaemon


def drawn(*nodes: tuple[str, str | None], strokes: graph.Strokes = graph.LINES) -> list[str]:
    return [f"{line} {key}" if key else line for line, key in graph.draw(nodes, lambda key: "●", strokes)]


def test_a_line() -> None:
    assert drawn(("3", "2"), ("2", "1"), ("1", None)) == ["● 3", "● 2", "● 1"]


def test_a_branch() -> None:
    assert drawn(("13", "7"), ("12", "11"), ("11", "7"), ("7", None)) == [
        "● 13",
        "│ ● 12",
        "│ ● 11",
        "├─╯",
        "● 7",
    ]


def test_three_branches_and_a_lane_between() -> None:
    nodes = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"), ("x", "y"), ("y", None)]
    assert drawn(*nodes) == [
        "● a",
        "│ ● b",
        "│ │ ● c",
        "│ │ │ ● d",
        "├─┼─┴─╯",
        "● │ x",
        "├─╯",
        "● y",
    ]


def test_a_lane_that_became_free_is_used_again() -> None:
    assert drawn(("a", None), ("b", "r"), ("c", "r"), ("r", None)) == ["● a", "● b", "│ ● c", "├─╯", "● r"]


def test_ascii() -> None:
    nodes = [("a", "r"), ("b", "r"), ("r", None)]
    assert drawn(*nodes, strokes=graph.ASCII) == ["● a", "| ● b", "+-'", "● r"]


def test_the_tree_of_a_restored_sandbox(daemon: FakeDaemon) -> None:
    with turnkeep.connect(daemon.address) as tk:
        box = tk.attach("web")
        for _ in range(2):
            with box.turn():
                pass
        daemon.service.outcome = pb.TURN_STATE_SKIPPED
        with box.turn():
            pass
        box.checkpoint(name="good")
        box.restore(turn=1)
        daemon.service.sandboxes[box.key].last_turn = 1
        daemon.service.outcome = pb.TURN_STATE_DURABLE
        with box.turn():
            pass
        nodes = history.tree(box.turns(), box.checkpoints(), box.refresh().head_checkpoint_id)
    names = {node.key: _name(node) for node in nodes}
    links = {names[node.key]: names.get(node.parent or "") for node in nodes}
    assert links == {
        "attach": None,
        "1": "attach",
        "2": "1",
        "3": "2",
        "good": "3",
        "before-restore": "good",
        "4": "1",
    }
    assert [names[node.key] for node in nodes if node.is_head] == ["4"]
    places = [node.key for node in nodes]
    assert all(places.index(node.key) < places.index(node.parent) for node in nodes if node.parent)


def test_a_tree_with_gaps(daemon: FakeDaemon) -> None:
    with turnkeep.connect(daemon.address) as tk:
        box = tk.attach("web")
        for _ in range(2):
            with box.turn():
                pass
        turns = box.turns()
        assert [node.parent for node in history.tree(turns, [], None)] == ["turn 1", None]
        assert history.tree([], [], "x") == []


def _name(node: history.Node) -> str:
    if node.turn:
        return str(node.turn.number)
    assert node.checkpoint is not None
    return node.checkpoint.name or node.checkpoint.origin
