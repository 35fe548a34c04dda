"""What a capture says wrongly about its cameras: exposure and white balance, and poses, as small learned corrections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instant_nk.geometry.rotations import so3_exp


class RigCorrection(nn.Module):
    """Corrections per camera, constant over the frames it is trained on.

    All have mean zero over the cameras: what they share, a common brightness or a common rigid motion, belongs to the subject.

    Args:
        cameras: C.
        exposure: learn a gain per camera and channel, which is exposure and white balance together; in sRGB values, where a
            camera's gain is close to a factor.
        poses: learn a turn about its own centre and a shift per camera.

    Attributes:
        log_gain: [C, 3]; turn: radians about the scene's axes [C, 3]; shift: scene units [C, 3].
    """

    def __init__(self, cameras: int, exposure: bool, poses: bool):
        super().__init__()
        self.exposure, self.poses = exposure, poses
        self.log_gain = nn.Parameter(torch.zeros(cameras, 3), requires_grad=exposure)
        self.turn = nn.Parameter(torch.zeros(cameras, 3), requires_grad=poses)
        self.shift = nn.Parameter(torch.zeros(cameras, 3), requires_grad=poses)

    def gains(self) -> Tensor:
        """Factor on rendered colour that makes it look as each camera took it [C, 3]; geometric mean one."""
        return torch.exp(self.log_gain - self.log_gain.mean(0))

    def turns(self) -> Tensor:
        """Axis-angle of each camera's correction, radians [C, 3]."""
        return self.turn - self.turn.mean(0)

    def shifts(self) -> Tensor:
        """Move of each camera's centre, scene units [C, 3]."""
        return self.shift - self.shift.mean(0)

    def rays(self, origins: Tensor, directions: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected rays [R, 3] of cameras i64 [R], differentiable in the correction."""
        turned = (so3_exp(self.turns())[camera] @ directions[..., None])[..., 0]
        return origins + self.shifts()[camera], turned

    def describe(self) -> dict[str, list]:
        """The corrections found, for a metrics file: gains, degrees and scene units by camera."""
        found = {}
        if self.exposure:
            found["camera_gains"] = self.gains().detach().cpu().tolist()
        if self.poses:
            found["camera_turns_deg"] = torch.rad2deg(torch.linalg.vector_norm(self.turns().detach(), dim=-1)).cpu().tolist()
            found["camera_shifts_scene"] = torch.linalg.vector_norm(self.shifts().detach(), dim=-1).cpu().tolist()
        return found


class FrameColour(nn.Module):
    """A small code per frame that only the colour network reads: light that changes over time.

    Distance, gradient and residual are computed before it and do not depend on it, so it cannot say anything about geometry;
    few numbers per frame cannot paint details either.

    Args:
        frames: F; width: numbers per frame; hidden: width of the colour network.
    """

    def __init__(self, frames: int, width: int, hidden: int):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(frames, width))
        self.spread = nn.Linear(width, hidden, bias=False)

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    def forward(self, frame: Tensor) -> Tensor:
        """What the colour network's first layer adds for frame indices [N]: [N, hidden]; zero at initialisation."""
        return self.spread(self.codes)[frame]

    def penalty(self) -> Tensor:
        """Mean square of the codes and of their change from frame to frame."""
        change = (self.codes[1:] - self.codes[:-1]) ** 2
        return (self.codes**2).mean() + (change.mean() if len(change) else 0)
