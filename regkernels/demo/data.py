"""Loads handwritten digits: 1797 real images of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


class Digits(NamedTuple):
    """Holds images as rows of 64 numbers from 0 to 1, labels from 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, dtype: torch.dtype) -> Digits:
        """Returns the same with images of another type."""
        return self._replace(train_images=self.train_images.to(dtype), test_images=self.test_images.to(dtype))


def load(seed: int) -> Digits:
    """Takes three quarters to train with, one quarter to test with, each digit in both in proportion."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=seed, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, parts)
    return Digits(train_images, train_labels, test_images, test_labels).to(torch.float32)


def batches(digits: Digits, size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields shuffled batches of training images; the same ones for the same seed. Images left over sit out an epoch."""
    generator = torch.Generator().manual_seed(seed)
    count = len(digits.train_labels)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            chosen = order[start : start + size]
            yield digits.train_images[chosen], digits.train_labels[chosen]


def batches_per_epoch(digits: Digits, size: int) -> int:
    """Counts the `batches` of an epoch."""
    return len(digits.train_labels) // size
