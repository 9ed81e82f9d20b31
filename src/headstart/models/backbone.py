"""timm backbones: creation, the data config of their inputs, and their split into features and head.

The head is timm's own classifier; features are its inputs (of MobileNetV3, 1,024 values and not the last map's 576).
"""

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.models import pip_weights
from headstart.models.head import Head

BUNDLED = "bundled"
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (torch's only common base)
# Of httpx2, httpx or requests, whichever the installed huggingface_hub uses.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def create_backbone(
    name: str,
    *,
    pretrained: bool,
    image_size: int | None,
    args: dict[str, Any],
    seed: int = 0,
    num_classes: int | None = None,
) -> nn.Module:
    """Create the timm model of ``params.yaml``; with ``num_classes`` it gets a new head of zeros.

    Without pretrained weights they are initialized from ``seed``; torch's global generator keeps its state.

    Raises UserError: no such model, arguments that it does not accept, weights that can't be fetched, or a classifier
    that is not one linear layer.
    """
    with torch.random.fork_rng(), _user_errors(name):
        torch.manual_seed(seed)
        if pretrained and name.startswith(pip_weights.PREFIX):
            args = args | {"pretrained_cfg_overlay": {"state_dict": pip_weights.read_weights(name)}}
        model: nn.Module = timm.create_model(timm_name(name), pretrained=pretrained, **args)
        model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]
        if image_size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=image_size)  # type: ignore[operator]
        if num_classes is not None:
            model.reset_classifier(num_classes)  # type: ignore[operator]
            head = get_head(model)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    return model


def timm_name(name: str) -> str:
    """Return the name for timm; that of ``bundled`` is a folder of this package, in timm's ``local-dir`` format."""
    if name.startswith(pip_weights.PREFIX):
        return pip_weights.architecture_of(name)
    return f"local-dir:{resources.files('headstart') / 'pretrained' / 'resnet18d_64'}" if name == BUNDLED else name


def get_head(model: nn.Module) -> nn.Linear:
    """Return the model's classifier; raises UserError if it is not one linear layer with a bias."""
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, tuple | list | nn.ModuleList):
        raise UserError(
            "backbone.name: this model has several classifiers (distilled ones do); choose one with a single classifier"
        )
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise UserError(
            f"backbone.name: this model's classifier is a {type(head).__name__}, not a linear layer with a bias; "
            "choose another model"
        )
    return head


def head_name(model: nn.Module) -> str:
    """Return the name of the head's module, such as ``fc`` or ``head.fc``."""
    head = get_head(model)
    return str(next(name for name, module in model.named_modules() if module is head))


def features_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the inputs of the head, (batch, width), of images (batch, 3, height, width)."""
    maps = model.forward_features(inputs)  # type: ignore[operator]
    features: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    return features


def input_config(model: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """Return timm's data config of a model, which determines the evaluation transform, as plain JSON values.

    They are ``input_size`` [3, height, width], ``interpolation``, ``mean``, ``std``, ``crop_pct`` and ``crop_mode``.
    """
    config: dict[str, Any] = resolve_data_config({"img_size": image_size}, model=model)  # type: ignore[no-untyped-call]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def input_config_by_name(name: str, image_size: int | None, args: dict[str, Any]) -> dict[str, Any]:
    """Return ``input_config`` of the model that ``create_backbone`` would create.

    Neither weights are loaded nor memory allocated; of a hub's model only the config is fetched.
    """
    with torch.device("meta"):
        model = create_backbone(name, pretrained=False, image_size=None, args=args)
    return input_config(model, image_size)


def channels_last(model: nn.Module) -> nn.Module:
    """Convert a model's weights to channels_last, in which convolutions are fastest on CPUs and GPUs, and return it.

    Strided 1 x 1 convolutions of the image itself (RepVGG's stems) stay contiguous and read a contiguous copy: in
    channels_last their backward pass crashes on CPUs without AVX-512 (torch 2.15).
    """
    model = model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size == (1, 1) != module.stride:
            module.to(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous)
    return model


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


def weights_sha256(model: nn.Module) -> str:
    """Hash the names and values of the backbone's weights and buffers, without the head's."""
    prefix = head_name(model) + "."
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(prefix):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _user_errors(name: str) -> Iterator[None]:
    """Turn the exceptions of timm and the hub into a UserError that says what to do."""
    try:
        yield
    except (OSError, HTTP_ERROR) as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(f"backbone.name: {name}: {error}") from error
        raise UserError(
            f"backbone.name: the weights of {name} can't be fetched ({type(error).__name__}: {error}). You can\n"
            "  1. run once where the hub is in reach (it keeps them in HF_HOME), and copy that folder here;\n"
            "  2. save the model as a folder with timm's save_for_hf and use backbone.name: local-dir:/that/folder;\n"
            "  3. use backbone.name: bundled, or backbone.pretrained: false."
        ) from error
    except TypeError as error:
        raise UserError(f"backbone.args: timm does not build {name} with them: {error}") from error
    except (RuntimeError, ValueError) as error:
        nearest = difflib.get_close_matches(name.split(".", maxsplit=1)[0], timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(nearest)}?" if "Unknown model" in str(error) and nearest else ""
        raise UserError(f"backbone.name: {name}: {error}{hint}") from error


def freeze_(model: nn.Module, *, statistics: bool) -> None:
    """Set modules to evaluation mode if none of their parameters is trained, which turns off their dropout too.

    With ``statistics`` the running statistics of all BatchNorm layers are frozen as well.
    """
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (statistics and isinstance(module, BATCH_NORM)):
            module.eval()


def backbone_for(backbone: BackboneConfig, classes: int) -> nn.Module:
    """Create the backbone of ``params.yaml`` with a head of zeros."""
    # Only if they are not 0: not every timm model accepts them.
    rates = {name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(backbone, name))}
    return create_backbone(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.image_size,
        args=backbone.args | rates,
        seed=backbone.seed,
        num_classes=classes,
    )


def set_head(model: nn.Module, head: Head) -> None:
    """Copy the probe's head into the model's."""
    get_head(model).load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})


class WithFeatures(nn.Module):
    """A timm model that returns its features beside its logits, since out-of-distribution scores need them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, classes) and features (batch, width)."""
        features = features_of(self.model, pixels)
        return get_head(self.model)(features), features
