"""timm's evaluation transform in two parts: the resize before images are stored, and the crop when they are read."""

from typing import Any

from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, PILToTensor, ToPILImage


def evaluation_transform(config: dict[str, Any]) -> tuple[Compose, Any]:
    """Split timm's own transform for a config of ``models.backbone.input_config``.

    The resize is of a PIL image, the crop of a uint8 tensor (3, height, width).
    """
    *resize, crop, _to_tensor, _normalize = create_transform(**config, is_training=False).transforms
    if config["crop_mode"] == "border":  # pads with a colour, which torchvision supports for PIL images only
        crop = Compose([ToPILImage(), crop, PILToTensor()])
    return Compose(resize), crop
