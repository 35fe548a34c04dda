"""Parts that turned too far are found again on a GPU too."""

from __future__ import annotations

import pytest
import torch

from instant_nk.fitting.registration_sequence import register_sequence
from tests.unit import test_lost_parts as head

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_head_that_turns_at_once_is_found():
    vertices, faces, on_head, colours = head.head_and_stick()
    body = head.make_body(vertices, faces, colours, "cuda")
    angles = [0.0, 0.05, head.TURN]

    def observe(frame):
        return head.target_of(body, head.seen(head.posed(vertices, on_head, angles[frame]), faces, colours, seed=frame))

    fits = register_sequence(body, [0, 1, 2], 0, observe, head.OPTIONS)
    assert max(head.head_errors(body, fits[f].pose, on_head, vertices, angles[f]).mean() for f in fits) < 2.0
    assert fits[2].contradicted < 0.01
