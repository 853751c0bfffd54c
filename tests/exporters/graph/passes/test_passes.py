"""All passes in their order."""

from __future__ import annotations

import numpy as np
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes import PASSES, simplify


def test_each_pass_leaves_work_for_the_next() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) {"
        " s = Constant<value_ints = [0, 4]>() t = Constant<value_ints = [0, 4]>() zero = Sub(one, one)"
        " a = Add(x, zero) b = Reshape(a, s) c = Reshape(a, t) d = Exp(c) y = Mul(b, c) }",
        one=np.array(1, np.float32),
    )
    check(simplify, model)
    assert operators(model)["Mul"] == 1
    assert not {"Add", "Sub", "Exp", "Constant"} & set(operators(model))


def test_every_pass_says_its_rule() -> None:
    for rewrite in PASSES:
        assert rewrite.__doc__
        assert "in place" in rewrite.__doc__
