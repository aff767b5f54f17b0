"""Compacted models of transformers through files: heads, units and tied embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regkernels as rk

pytest.importorskip("transformers")

from tests.structure.hugging_face import MODELS, logits, with_dead_parts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", MODELS)
def test_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    compacted = rk.compact(with_dead_parts(MODELS[name]()))
    assert compacted.removed
    compacted.save(tmp_path / "file")
    loaded = rk.load_compacted(tmp_path / "file", MODELS[name]()).eval()
    assert repr(loaded) == repr(compacted.model)
    assert torch.equal(logits(loaded), logits(compacted.model))
    if name == "gpt2":
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
