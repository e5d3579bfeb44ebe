"""HRNet (Sun et al., CVPR 2019): parallel branches at 1/4, 1/8, 1/16, 1/32 that exchange features.

TokenPose and TransPose use the first three stages of `HighResolutionTrunk`, and HRFormer uses it with its own blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.rivals.layers import conv_bn
from benchmarks.rivals.resnet import BasicBlock, bottlenecks

MakeBlock = Callable[[int, int], nn.Module]  # channels, index of the branch (0 is the finest) -> block
MakeDown = Callable[[int, int, bool], nn.Module]  # inputs, outputs, whether a ReLU follows -> layer that halves a map


def convolve_down(inputs: int, outputs: int, relu: bool) -> nn.Module:
    """Build the layer that halves a map in HRNet: a full 3x3 convolution with BatchNorm and optional ReLU."""
    return conv_bn(inputs, outputs, 3, 2, relu)


class Exchange(nn.Module):
    """One module of a stage: every branch runs its blocks, and then sums the resized features of all branches.

    It maps a list of features [B, widths[i], h / 2^i, w / 2^i] to a list of the finest `outputs` of them.

    Args:
        widths: channels of the branches, from fine to coarse.
        block, blocks, down, up_mode: as in `HighResolutionTrunk`.
        outputs: number of branches to compute, counted from the finest.
    """

    def __init__(
        self, widths: list[int], block: MakeBlock, blocks: int, down: MakeDown, up_mode: str, outputs: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(block(width, branch) for _ in range(blocks))) for branch, width in enumerate(widths)
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target, down, up_mode) for source in range(len(widths)))
            for target in range(outputs)
        )
        self.relu = nn.ReLU()

    @staticmethod
    def _path(widths: list[int], source: int, target: int, down: MakeDown, up_mode: str) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            corners = None if up_mode == "nearest" else False
            upsample = nn.Upsample(scale_factor=2 ** (source - target), mode=up_mode, align_corners=corners)
            return nn.Sequential(conv_bn(widths[source], widths[target], relu=False), upsample)
        steps = [down(widths[source], widths[source], True) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, down(widths[source], widths[target], False))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        out = []
        for paths in self.fuse:
            received = [path(x) for path, x in zip(paths, maps)]
            total = received[0]
            for x in received[1:]:
                total = total + x
            out.append(self.relu(total))
        return out


class HighResolutionTrunk(nn.Module):
    """HRNet without its predictor: images [B, 3, H, W] -> the finest branch [B, width, H/4, W/4].

    Args:
        width: channels of the finest branch; they double from branch to branch.
        block: makes a block from its channels and the index of its branch.
        blocks: number of blocks per branch and module.
        modules: number of modules in stages 2, 3, ...; stage s has s branches.
        bottleneck_blocks: number of blocks in stage 1.
        down: makes the layer that halves a map, see `MakeDown`.
        up_mode: `mode` of `nn.Upsample`, which enlarges maps.
    """

    def __init__(
        self,
        width: int,
        block: MakeBlock = lambda channels, branch: BasicBlock(channels),
        blocks: int = 4,
        modules: tuple[int, ...] = (1, 4, 3),
        bottleneck_blocks: int = 4,
        down: MakeDown = convolve_down,
        up_mode: str = "nearest",
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 3, 2), conv_bn(64, 64, 3, 2), bottlenecks(64, 64, bottleneck_blocks))
        self.first = conv_bn(256, width, 3)
        self.starts = nn.ModuleList()  # every stage starts a new branch from the coarsest map of the previous stage
        self.stages = nn.ModuleList()
        before = 256
        for i, count in enumerate(modules):
            widths = [width * 2**b for b in range(i + 2)]
            self.starts.append(conv_bn(before, widths[-1], 3, 2))
            before = widths[-1]
            ends = [1 if i == len(modules) - 1 and m == count - 1 else len(widths) for m in range(count)]
            self.stages.append(nn.Sequential(*(Exchange(widths, block, blocks, down, up_mode, n) for n in ends)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        maps = [self.first(x)]
        for start, stage in zip(self.starts, self.stages):
            maps = stage([*maps, start(x)])
            x = maps[-1]
        return maps[0]


class HRNet(nn.Module):
    """HRNet, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Args:
        width: channels of the finest branch, 32 or 48 in the papers.
        num_keypoints: number of keypoints K.
    """

    def __init__(self, width: int = 32, num_keypoints: int = 17) -> None:
        super().__init__()
        self.trunk = HighResolutionTrunk(width)
        self.predictor = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.predictor(self.trunk(images))


def three_stages(width: int) -> HighResolutionTrunk:
    """Build HRNet up to stage 3, the trunk of TokenPose-L and TransPose-H."""
    return HighResolutionTrunk(width, modules=(1, 4))
