"""Heads of queries that share keys: each key gives up as many."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regkernels as rk

pytest.importorskip("transformers")
from tests.structure import hugging_face as hf

pytestmark = pytest.mark.usefixtures("one_thread")


def with_unread_queries(*queries: int) -> nn.Module:
    """A Llama with four queries of length 6, the first two and the last two of which share a key."""
    model = hf.llama(key_value_heads=2).double().eval()
    with torch.no_grad():
        for query in queries:
            model.model.layers[1].self_attn.o_proj.weight[:, 6 * query : 6 * query + 6] = 0
    return model


@pytest.mark.parametrize(("dead", "left"), [((0, 3), [1, 2]), ((0, 2), [1, 3]), ((0, 1), [2, 3])])
def test_as_many_queries_of_each_key(dead: tuple[int, ...], left: list[int]) -> None:
    model = with_unread_queries(*dead)
    compacted = rk.compact(model)
    old, new = (m.model.layers[1].self_attn for m in (model, compacted.model))
    rows = torch.cat([torch.arange(6 * query, 6 * query + 6) for query in left])
    assert torch.equal(new.q_proj.weight, old.q_proj.weight[rows])
    keys = 1 if dead == (0, 1) else 2
    assert (new.k_proj.out_features, new.v_proj.out_features, new.num_key_value_groups) == (
        6 * keys,
        6 * keys,
        2 // keys,
    )
    torch.testing.assert_close(hf.logits(compacted.model), hf.logits(model), rtol=0, atol=1e-12)
    assert compacted.kept == ()


def test_queries_that_have_to_stay_are_reported() -> None:
    """Of the first key one query is dead, of the second none."""
    compacted = rk.compact(with_unread_queries(0))
    assert not compacted.removed
    (kept,) = compacted.kept
    assert (kept.side, kept.channels) == ("inputs", tuple(range(6))) and "as many queries as the others" in kept.reason


def test_one_head_is_left() -> None:
    model = with_unread_queries(0, 1, 2, 3)
    small = rk.compact(model).model
    assert small.model.layers[1].self_attn.k_proj.out_features == 6
    torch.testing.assert_close(hf.logits(small), hf.logits(model), rtol=0, atol=1e-12)
