"""A small network that learns in a minute or two on a laptop, with a first layer worth looking at."""

from __future__ import annotations

from torch import Tensor, nn

from lit_viz.errors import UsageError


class SmallCNN(nn.Module):
    """Three convolution blocks and a linear head: `conv1`, `norm1`, `relu1`, `pool1`, ..., `head`.

    The first convolution has large kernels, so that what it learns can be seen; the two others are 3 x 3.
    Batch normalisation makes the scale of a kernel irrelevant to the output, so weight decay wears off the
    random start, and what remains of a filter is what was learned.

    The design is easy on determinism: pooling windows don't overlap, the last pooling is a plain mean over
    positions (any image size of at least 16 pixels will do), no layer draws random numbers, and each ReLU is
    a module of its own, used once and not in place.

    Args:
        num_classes: Number of scores per image.
        in_channels: Channels of the images: 3 for colour, 1 for grey.
        width: Filters in the first layer; the second and third have twice and four times as many.
        kernel_size: Side of the first layer's kernels, in pixels; odd.
        stride: Stride of the first layer, in pixels. 2 suits images of about 64 pixels, 1 images of 28 or 32.

    Raises:
        UsageError: For a size that isn't positive, or an even kernel.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, width: int = 32, kernel_size: int = 9, stride: int = 2
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "stride": stride}
        for name, value in sizes.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"kernel_size must be odd, so that maps stay centred, got {kernel_size}; take 7 or 9.")
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W), normalised, to scores (N, num_classes) before softmax."""
        x = self.pool1(self.relu1(self.norm1(self.conv1(images))))
        x = self.pool2(self.relu2(self.norm2(self.conv2(x))))
        x = self.relu3(self.norm3(self.conv3(x)))
        return self.head(x.mean(dim=(2, 3)))
