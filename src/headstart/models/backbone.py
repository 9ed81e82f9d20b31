"""timm backbones: creation, the data config of their inputs, and their split into features and head.

The head is timm's own classifier; features are its inputs (of MobileNetV3, 1,024 values and not the last map's 576).
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.models import load_checkpoint
from torch import Tensor, nn

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.core.paths import MODEL_CONFIG
from headstart.models import pip_weights
from headstart.models.head import Head
from headstart.models.stem import channels_of, check_rgb, copy_weights, describe_channels, stem_layers

BUNDLED = "bundled"
LOCAL_DIR = "local-dir:"  # timm's prefix of a backbone that is a folder
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (torch's only common base)
# Of httpx2, httpx or requests, whichever the installed huggingface_hub uses.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
TIMM_ERRORS = (RuntimeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError, ImportError)
"""What timm's models raise at arguments or sizes that they can't take; ``TypeError`` too."""
NO_WEIGHTS = (b"<", b"version https://git-lfs")
"""How web pages and the pointers of Git LFS begin, which are at times saved in place of weights."""


def create_backbone(
    name: str,
    *,
    pretrained: bool,
    image_size: int | None,
    args: dict[str, Any],
    seed: int = 0,
    num_classes: int | None = None,
    in_chans: int | None = 3,
    rgb: Sequence[int] | None = None,
) -> nn.Module:
    """Create the timm model of ``params.yaml`` for images of ``in_chans`` bands; None: as many as its weights are for.

    With ``num_classes`` it gets a new head of zeros. Without pretrained weights they are initialized from ``seed``;
    torch's global generator keeps its state. Weights for other channels are spread over the bands, or those of red,
    green and blue are taken for the bands of ``rgb``, counted from 1, and 0 for all others; see ``models.stem``.

    Raises UserError: no such model, arguments that it does not accept, weights that can't be fetched, a checkpoint that
    can't be loaded, a first layer that can't be adapted, or a classifier that is not one linear layer.
    """
    if "in_chans" in args:
        raise UserError(
            f"backbone.args.in_chans: {args['in_chans']!r}: remove it, since prepare.channels says what images have"
        )
    with torch.random.fork_rng(), _user_errors(name):
        model = _build(name, pretrained=pretrained, image_size=image_size, args=args, seed=seed)
        own = channels_of(model)
        in_chans = own if in_chans is None else in_chans
        if rgb is not None:
            check_rgb(rgb, in_chans, own)
        if rgb is not None or in_chans != own:
            has_weights = pretrained or "checkpoint_path" in args
            empty = {key: value for key, value in args.items() if key != "checkpoint_path"} | {"in_chans": in_chans}
            try:
                adapted = _build(name, pretrained=False, image_size=image_size, args=empty, seed=seed)
                describe_channels(adapted, in_chans, rgb)
                if has_weights:
                    copy_weights(model, adapted, rgb)
            except (*TIMM_ERRORS, TypeError) as error:
                raise UserError(
                    f"backbone.name: {name}: its first layer can't be made for images of {in_chans} channels "
                    f"({reason_of(error)}): choose another model, or other prepare.channels"
                ) from error
            model = adapted
        if num_classes is not None:
            model.reset_classifier(num_classes)  # type: ignore[operator]
            head = get_head(model)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    return model


def _build(name: str, *, pretrained: bool, image_size: int | None, args: dict[str, Any], seed: int) -> nn.Module:
    """Build a model by timm for an image size, for as many channels as its weights, or for ``args["in_chans"]``."""

    def create(**size: int) -> nn.Module:
        torch.manual_seed(seed)
        wanted = args | size
        if pretrained and name.startswith(pip_weights.PREFIX) and "pretrained_cfg_overlay" not in wanted:
            wanted["pretrained_cfg_overlay"] = {"state_dict": pip_weights.read_weights(name)}
        checkpoint = wanted.pop("checkpoint_path", None)
        model: nn.Module = timm.create_model(timm_name(name), pretrained=pretrained, **wanted)
        model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]
        if checkpoint is not None:
            _load_checkpoint(model, checkpoint)
        return model

    model = create()
    if image_size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=image_size)  # type: ignore[operator]
    elif image_size is not None and _is_fixed_to_another(model, image_size):
        model = create(img_size=image_size)
    return model


def _is_fixed_to_another(model: nn.Module, image_size: int) -> bool:
    """Return whether a model must be created for ``image_size`` px.

    Some of these compute other sizes as they are (Twins), but timm does not save them for another one.
    """
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    return bool(config.get("fixed_input_size")) and image_size != config["input_size"][-1]


def _load_checkpoint(model: nn.Module, path: Any) -> None:
    """Load ``backbone.args.checkpoint_path`` by timm; raises UserError if it can't be read or has other weights."""
    key = f"backbone.args.checkpoint_path: {path}"
    if not isinstance(path, str) or not Path(path).is_file():
        raise UserError(f"{key}: no such file: write the path of a checkpoint, from the project's folder on")
    try:
        with Path(path).open("rb") as file:
            if file.read(64).startswith(NO_WEIGHTS):
                raise UserError(f"{key}: a web page or a Git LFS pointer, no weights: fetch the file itself")
        load_checkpoint(model, path)
    except (OSError, EOFError, TypeError, SafetensorError, UnpicklingError, *TIMM_ERRORS) as error:
        raise UserError(
            f"{key}: {reason_of(error)}: it must hold the weights of backbone.name and, where its classes are not as "
            "many as that model's own, their number must be in backbone.args.num_classes"
        ) from error


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters, or its type where it has none."""
    message = re.sub(r"^Error\(s\) in loading state_dict for \w+: ", "", " ".join(str(error).split()))
    return message[:300].rstrip(". ") or type(error).__name__


def timm_name(name: str) -> str:
    """Return the name for timm; that of ``bundled`` is a folder of this package, in timm's ``local-dir`` format."""
    if name.startswith(pip_weights.PREFIX):
        return pip_weights.architecture_of(name)
    return f"{LOCAL_DIR}{resources.files('headstart') / 'pretrained' / 'resnet18d_64'}" if name == BUNDLED else name


class PointwiseHead(nn.Conv2d):
    """A classifier that timm writes as a 1 x 1 convolution (ResNetV2, DLA, DPN): a linear layer of pooled features."""

    bias: nn.Parameter

    @property
    def in_features(self) -> int:
        """The width of the features."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """The number of classes."""
        return self.out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (batch, classes) of features (batch, width), or timm's own of maps (batch, width, 1, 1)."""
        return super().forward(inputs[:, :, None, None]).flatten(1) if inputs.ndim == 2 else super().forward(inputs)


def get_head(model: nn.Module) -> nn.Linear | PointwiseHead:
    """Return the model's classifier; raises UserError if it is not one linear layer with a bias.

    Where timm returns a module whose only weights are those of one linear layer, this layer is the classifier.
    """
    head = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Module) and len(head.state_dict()) == 2:
        head = next((module for module in head.modules() if isinstance(module, nn.Linear)), head)
    if type(head) is nn.Conv2d and head.kernel_size == (1, 1):
        head.__class__ = PointwiseHead  # its weights and their names stay timm's
    if isinstance(head, tuple | list | nn.ModuleList):
        raise UserError(
            "backbone.name: this model has several classifiers (distilled ones do); choose one with a single classifier"
        )
    if not isinstance(head, nn.Linear | PointwiseHead) or head.bias is None:
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
    """Compute the inputs of the head, (batch, width), of images (batch, channels, height, width)."""
    maps = model.forward_features(inputs)  # type: ignore[operator]
    features: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    return features


def input_config(model: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """Return timm's data config of a model, which determines the evaluation transform, as plain JSON values.

    They are ``input_size`` [channels, height, width], ``interpolation``, ``mean`` and ``std``, which have a number for
    each channel, ``crop_pct`` and ``crop_mode``.
    """
    args = {"img_size": image_size, "in_chans": channels_of(model)}
    config: dict[str, Any] = resolve_data_config(args, model=model)  # type: ignore[no-untyped-call]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def input_config_by_name(
    name: str, image_size: int | None, args: dict[str, Any], in_chans: int = 3, rgb: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return ``input_config`` of the model that ``create_backbone`` would create.

    Neither weights are loaded nor memory allocated; of a hub's model only the config is fetched. Of images with other
    channels than the weights ``mean`` and ``std`` are the weights' own only for the bands of ``rgb``; the others have
    their average, in the place of what only the images tell.
    """
    with torch.device("meta"):
        model = create_backbone(name, pretrained=False, image_size=None, args=args, in_chans=in_chans, rgb=rgb)
    return input_config(model, image_size)


def channels_last(model: nn.Module) -> nn.Module:
    """Convert a model's weights to channels_last, in which convolutions are fastest on CPUs and GPUs, and return it.

    Strided 1 x 1 convolutions of the image itself (RepVGG's stems) stay contiguous and read a contiguous copy: in
    channels_last their backward pass crashes on CPUs without AVX-512 (torch 2.15).
    """
    model = model.to(memory_format=torch.channels_last)
    for name in stem_layers(model):
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) != module.stride:
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
        raise unfetched(name, f"{type(error).__name__}: {error}") from error
    except TypeError as error:
        raise UserError(f"backbone.args: timm does not build {name} with them: {reason_of(error)}") from error
    except (SafetensorError, *TIMM_ERRORS) as error:
        reason = reason_of(error)
        if ":" in name and isinstance(error, KeyError | JSONDecodeError):
            reason = f"its {MODEL_CONFIG} is not timm's ({reason}); write the model by timm's save_for_hf"
        nearest = _near_names(name, reason)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        raise UserError(f"backbone.name: {name}: {reason}{hint}") from error


def unfetched(name: str, reason: str) -> UserError:
    """Return the error that says how to get weights that can't be fetched."""
    return UserError(
        f"backbone.name: the weights of {name} can't be fetched ({reason}). You can\n"
        "  1. run once where the hub is in reach (it keeps them in HF_HOME), and copy that folder here;\n"
        "  2. save the model as a folder with timm's save_for_hf and use backbone.name: local-dir:/that/folder;\n"
        "  3. use backbone.name: bundled, or backbone.pretrained: false."
    )


def _near_names(name: str, problem: str) -> list[str]:
    """Return timm's names that are nearest to an unknown model or to an unknown tag of its pretrained weights."""
    model = name.partition(".")[0].lower()
    if "Invalid pretrained tag" in problem:
        return difflib.get_close_matches(name, timm.list_pretrained(f"{model}.*"), n=3, cutoff=0)
    return difflib.get_close_matches(model, timm.list_models(), n=3) if "Unknown model (" in problem else []


def freeze_(model: nn.Module, *, statistics: bool) -> None:
    """Set modules to evaluation mode if none of their parameters is trained, which turns off their dropout too.

    With ``statistics`` the running statistics of all BatchNorm layers are frozen as well.
    """
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (statistics and isinstance(module, BATCH_NORM)):
            module.eval()


def backbone_for(backbone: BackboneConfig, classes: int, in_chans: int = 3) -> nn.Module:
    """Create the backbone of ``params.yaml`` for images of ``in_chans`` bands, with a head of zeros."""
    # Only if they are not 0: not every timm model accepts them.
    rates = {name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(backbone, name))}
    return create_backbone(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.fixed_size,
        args=backbone.args | rates,
        seed=backbone.seed,
        num_classes=classes,
        in_chans=in_chans,
        rgb=backbone.rgb,
    )


def set_head(model: nn.Module, head: Head) -> None:
    """Copy the probe's head into the model's."""
    own = get_head(model)
    own.load_state_dict(
        {"weight": torch.from_numpy(head.weight).view_as(own.weight), "bias": torch.from_numpy(head.bias)}
    )


class WithFeatures(nn.Module):
    """A timm model that returns its features beside its logits, since out-of-distribution scores need them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, classes) and features (batch, width)."""
        features = features_of(self.model, pixels)
        return get_head(self.model)(features), features
