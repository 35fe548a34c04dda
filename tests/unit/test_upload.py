"""Arrays that travel together arrive as they were."""

import numpy as np
import torch

from instant_nk.kernels import _upload as upload


def test_arrays_packed_together_come_back_as_they_were():
    rng = np.random.default_rng(0)
    values = [
        rng.normal(size=(5, 3)),
        rng.integers(0, 9, 7),
        np.zeros((0, 2), np.int32),
        rng.integers(0, 9, (3, 1)).astype(np.int32),
        rng.normal(size=(4, 6))[:, ::2],
    ]
    whole = upload.packed(values)
    found = upload.unpacked(torch.from_numpy(whole), values)
    for x, tensor in zip(values, found, strict=True):
        assert tensor.is_contiguous() and tensor.storage_offset() * tensor.element_size() % upload.ALIGNED == 0
        assert tensor.numpy().dtype == x.dtype and np.array_equal(tensor.numpy(), x)
    for x, tensor in zip(values, upload.upload(values, "cpu"), strict=True):
        assert np.array_equal(tensor.numpy(), x)
