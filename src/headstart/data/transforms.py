"""The timm backbone: built, loaded, split into features and classifier, and how it wants its images.

Features are what the classifier reads, ``forward_head(forward_features(x), pre_logits=True)`` (for MobileNetV3, 1,024
wide and not the 576 of the last map); the classifier is timm's own.
"""

from typing import Any

from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, PILToTensor, ToPILImage


def evaluation_transform(config: dict[str, Any]) -> tuple[Compose, Any]:
    """Split timm's own evaluation transform into the resize, which is stored, and the crop, which is done on reading.

    Args:
        config: ``input_config``'s.

    Returns:
        The resize of a PIL image, and the crop of a tensor, uint8 (3, height, width).
    """
    *resize, crop, _to_tensor, _normalize = create_transform(**config, is_training=False).transforms
    if config["crop_mode"] == "border":  # it pads with a colour, which torchvision does for PIL images alone
        crop = Compose([ToPILImage(), crop, PILToTensor()])
    return Compose(resize), crop
