"""EfficientNet-Lite: inverted residual blocks with depthwise convolutions, for devices with little compute.

Source: EfficientNet (Tan & Le, 1905.11946), Sec. 3.3 and 4; MobileNetV2 (1801.04381), Sec. 3 for the blocks;
the Lite variants (no squeeze-and-excitation, ReLU6, first and last stage not deepened) are those of
tensorflow/tpu, `efficientnet/lite`. Parameters have timm's names, so timm's weights can be loaded.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from unimask.nn.layers import DropPath
from unimask.nn.same import SameConvolution

NORM_EPS = 1e-3  # as in TensorFlow
STEM = 32  # channels of the first convolution, in every variant
EXPANSION = 6


@dataclass(frozen=True)
class Stage:
    """The settings of a stage: number of blocks, kernel size, stride of the first block, output channels."""

    blocks: int
    kernel: int
    stride: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 16),
    Stage(2, 3, 2, 24),
    Stage(2, 5, 2, 40),
    Stage(3, 3, 2, 80),
    Stage(3, 5, 1, 112),
    Stage(4, 5, 2, 192),
    Stage(1, 3, 1, 320),
)
OUTPUTS = {4: 1, 8: 2, 16: 4, 32: 6}  # stride -> the last stage of that stride


def scaled(width: float, depth: float) -> tuple[Stage, ...]:
    """Return the stages with `width` times the channels and `depth` times the blocks (Sec. 3.3)."""
    last = len(STAGES) - 1
    return tuple(
        Stage(
            stage.blocks if number in (0, last) else math.ceil(stage.blocks * depth),
            stage.kernel,
            stage.stride,
            _multiple_of_eight(stage.channels * width),
        )
        for number, stage in enumerate(STAGES)
    )


def _multiple_of_eight(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, or the next one if it is below 90 % of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm followed by an activation."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels, eps=NORM_EPS)
        self.act = act

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps, normalised and activated."""
        result: Tensor = self.act(super().forward(maps))
        return result


def _relu6(channels: int) -> ActivatedNorm:
    return ActivatedNorm(channels, nn.ReLU6(inplace=True))


def _linear(channels: int) -> ActivatedNorm:
    return ActivatedNorm(channels, nn.Identity())


def _pointwise(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, bias=False)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride > 1:
        return SameConvolution(channels, channels, kernel, stride, groups=channels, bias=False)
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)


class DepthwiseSeparable(nn.Module):
    """A depthwise and a pointwise convolution: the block of the first stage, without expansion."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel, 1)
        self.bn1 = _relu6(in_channels)
        self.conv_pw = _pointwise(in_channels, channels)
        self.bn2 = _linear(channels)

    def forward(
        self, maps: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return maps of the same size."""
        result: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(maps))))
        return result


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection.

    The input is added where size and channels stay the same.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        wide = EXPANSION * in_channels
        self.conv_pw = _pointwise(in_channels, wide)
        self.bn1 = _relu6(wide)
        self.conv_dw = _depthwise(wide, kernel, stride)
        self.bn2 = _relu6(wide)
        self.conv_pwl = _pointwise(wide, channels)
        self.bn3 = _linear(channels)
        self.is_residual = stride == 1 and in_channels == channels
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, maps: Float[Tensor, "batch in_channels _height _width"]
    ) -> Float[Tensor, "batch channels _rows _columns"]:
        """Return maps of the same size, or of half the size at stride 2."""
        wide = self.bn2(self.conv_dw(self.bn1(self.conv_pw(maps))))
        result: Tensor = self.bn3(self.conv_pwl(wide))
        return maps + self.drop_path(result) if self.is_residual else result


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without the classifier; `channels` is stride -> channels of the outputs."""

    def __init__(self, *, width: float = 1.0, depth: float = 1.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        stages = scaled(width, depth)
        self.conv_stem: nn.Conv2d = SameConvolution(3, STEM, 3, 2, bias=False)
        self.bn1 = _relu6(STEM)
        total, done, in_channels = sum(stage.blocks for stage in stages), 0, STEM
        self.blocks = nn.Sequential()
        for number, stage in enumerate(stages):
            blocks = nn.Sequential()
            for index in range(stage.blocks):
                rate = drop_path_rate * done / total
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(in_channels, stage.channels, stage.kernel, stride, rate)
                    if number
                    else DepthwiseSeparable(in_channels, stage.channels, stage.kernel)
                )
                in_channels, done = stage.channels, done + 1
            self.blocks.append(blocks)
        self.channels = {stride: stages[number].channels for stride, number in OUTPUTS.items()}
        self.apply(_initialize)

    def forward(
        self, pixels: Float[Tensor, "batch 3 _height _width"]
    ) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """Return the maps of strides 4, 8, 16 and 32, from normalised pixels; odd sizes are rounded up."""
        maps = self.bn1(self.conv_stem(pixels))
        found = []
        for number, stage in enumerate(self.blocks):
            maps = stage(maps)
            if number in OUTPUTS.values():
                found.append(maps)
        return found


def _initialize(module: nn.Module) -> None:
    """Initialise a convolution: normal, variance 2 / (kernel area * outputs per group), as in TensorFlow."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
