"""At which points masks are compared: random ones, or every cell of the mask."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.ops.points import uncertain_points
from unimask.ops.positions import cell_centers
from unimask.structures import Size, Uniform


@runtime_checkable
class Sampling(Protocol):
    """Chooses points of masks."""

    def shared(self, size: Size, device: torch.device, uniform: Uniform) -> Float[Tensor, "points 2"]:
        """The points at which the matcher compares all queries and targets of one picture."""

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """All that chance decides about the points of so many pairs."""

    def choose(
        self, maps: Float[Tensor, "pairs height width"], drawn: tuple[Float[Tensor, "pairs _ 2"], ...]
    ) -> Float[Tensor, "pairs points 2"]:
        """The points at which the losses compare each pair, given the mask logits of its query."""


@dataclass(frozen=True, kw_only=True)
class RandomPoints:
    """Uniform points for matching; for the losses mostly the least certain of more candidates.

    Source: Mask2Former (2112.01527), Sec. 3.3 (uniform sampling for the matcher, importance sampling for the
    losses), after PointRend (1912.08193), Sec. 3.1.
    """

    points: int
    candidates: int  # per pair, to choose the uncertain ones from
    uncertain: int  # of the points; the rest is uniform

    def shared(self, size: Size, device: torch.device, uniform: Uniform) -> Float[Tensor, "points 2"]:
        """`points` uniform points."""
        return uniform((1, self.points, 2))[0]

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """The candidates, then the points that are uniform."""
        candidates = uniform((pairs, self.candidates, 2))
        if self.uncertain == self.points:
            return (candidates,)
        return candidates, uniform((pairs, self.points - self.uncertain, 2))

    def choose(
        self, maps: Float[Tensor, "pairs height width"], drawn: tuple[Float[Tensor, "pairs _ 2"], ...]
    ) -> Float[Tensor, "pairs points 2"]:
        """The candidates whose logits are nearest to 0, and the uniform points."""
        candidates, *uniform_points = drawn
        return torch.cat([uncertain_points(maps, candidates, self.uncertain), *uniform_points], dim=1)


@dataclass(frozen=True, kw_only=True)
class EveryCell:
    """The centre of every cell of the mask, for matching and losses; nothing is random.

    The ablation of Mask2Former, Table 5. There masks are compared at the size of the targets; here at stride
    4, where the logits are: between their cells they are interpolated anyway.
    """

    def shared(self, size: Size, device: torch.device, uniform: Uniform) -> Float[Tensor, "points 2"]:
        """All cells of a mask of this size."""
        return cell_centers(*size, device=device)

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """Nothing."""
        return ()

    def choose(
        self, maps: Float[Tensor, "pairs height width"], drawn: tuple[Float[Tensor, "pairs _ 2"], ...]
    ) -> Float[Tensor, "pairs points 2"]:
        """All cells, for each pair."""
        pairs, height, width = maps.shape
        return cell_centers(height, width, device=maps.device).expand(pairs, -1, -1)
