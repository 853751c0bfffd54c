"""Find the hidden states between the layers of a TorchScript graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hidden_states(graph: torch._C.Graph) -> list[torch._C.Value]:
    """The input of the first layer, and the output of each.

    A layer normalises its state and adds what attention makes of it, then does the same with the MLP (Dosovitskiy et
    al. 2021, arXiv:2010.11929, equations 2 and 3): it ends with the sum of the value that its second norm takes.
    """
    first = next((node for node in graph.nodes() if node.kind() == "aten::layer_norm"), None)
    state = None if first is None else next(first.inputs())
    states = []
    while state is not None:
        states.append(state)
        middle = _sum_with(state)
        state = None if middle is None else _sum_with(middle)
    return states


def _sum_with(value: torch._C.Value) -> torch._C.Value | None:
    """The sum of a value and what is made of its norm; None where it is not normalised and added to."""
    users = {use.user.kind(): use.user for use in value.uses()}
    if "aten::layer_norm" not in users or "aten::add" not in users:
        return None
    return next(users["aten::add"].outputs())
