"""The ResNets of the literature on CIFAR-10 as torch modules: shortcuts without weights (option A).

Those of `tools/train_fmnist.py` but for three channels of input, and for the two places where the shape changes.
"""

from __future__ import annotations

import common
from torch import Tensor, nn
from torch.nn.functional import pad

nets = common.tool("train_fmnist")


class Padded(nn.Module):
    """Every other pixel, and as many channels of zeros on both sides of those that are there."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.side = (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


class Net(nn.Sequential):
    @property
    def stream(self) -> list[nn.Module]:
        """The convs whose outputs the shortcuts carry on."""
        return [self[0][0], *(block.b[0] for block in self if isinstance(block, nets.Basic))]


def resnet(depth: int) -> Net:
    net = Net(*nets.resnet(depth))
    net[0] = nets.conv_bn(3, 16)
    for block in net:
        if isinstance(block, nets.Basic) and not isinstance(block.sc, nn.Identity):
            conv = block.a[0]
            block.sc = Padded(conv.in_channels, conv.out_channels)
    return net
