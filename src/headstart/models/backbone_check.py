"""Checks of a backbone before anything is decoded: one forward pass that needs no memory, and where its weights are."""

import difflib
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.core.paths import MODEL_CONFIG
from headstart.models import pip_weights
from headstart.models.backbone import (
    HTTP_ERROR,
    LOCAL_DIR,
    TIMM_ERRORS,
    PointwiseHead,
    backbone_for,
    create_backbone,
    features_of,
    get_head,
    input_config,
    reason_of,
    timm_name,
    unfetched,
)

LEAST_SIDE, SIDE_STEP = 64, 32
"""Of the input that ``auto`` chooses: most networks halve the side five times, and two positions shall be left."""
STEPS = (32, 16, 14)
"""Sides of patches and strides: sizes that are multiples of one of them are proposed."""
SURE = ("resnet50", "convnext_tiny", "vit_small_patch16_224")
"""Proposed where no model of a similar name can be used."""
ADVICE = {"img_size": "write it as backbone.image_size"}


def check_backbone(backbone: BackboneConfig, in_chans: int = 3) -> str | None:
    """Check that all stages can use a backbone for images of ``in_chans`` bands.

    It takes a second or two, and fetches no weights.

    Returns:
        What to know about its weights: that they are not on this machine yet.

    Raises:
        UserError: the message begins with the key that is wrong, and names values that work.
    """
    rgb = backbone.rgb
    if rgb is not None and not backbone.pretrained and "checkpoint_path" not in backbone.args:
        raise UserError(f"backbone.rgb: {rgb}: random weights know no colours: set it to null, or backbone.pretrained")
    plain = backbone.model_copy(update={"rgb": None})
    try:
        config = dry_run(plain)
    except UserError as error:
        raise _blamed(plain, error) from error
    if rgb is not None or in_chans != 3:
        dry_run(backbone, in_chans=in_chans)
    return _missing_weights(backbone, config) if backbone.pretrained else None


def choose_side(name: str, args: dict[str, Any], shorter_side: int) -> int | None:
    """Return the side of the input that ``backbone.image_size: auto`` is, None for the backbone's own.

    Larger than half of the images hold, whose shorter side in pixels has this median, it would take more time for no
    more detail. A network made for one size keeps it.
    """
    with torch.device("meta"):
        model = create_backbone(name, pretrained=False, image_size=None, args=args)
    config: Any = model.pretrained_cfg
    backbone = BackboneConfig(name=name, args=args, pretrained=False)
    side = max(LEAST_SIDE, shorter_side // SIDE_STEP * SIDE_STEP)
    if config.get("fixed_input_size") or hasattr(model, "set_input_size"):
        return None
    if side >= min(input_config(model)["input_size"][1:]) or not _works(backbone, image_size=side):
        return None
    return side


def dry_run(backbone: BackboneConfig, device: str = "meta", *, in_chans: int = 3) -> dict[str, Any]:
    """Create a backbone as the stages do, without memory for its weights, and compute an image's features and logits.

    What can't run on torch's meta device runs on the CPU. Pretrained weights are read only from a folder; of others
    their shapes are loaded, which shows whether they can be adapted to this size and these channels. Returns timm's
    config of the pretrained weights.
    """
    is_local = timm_name(backbone.name).startswith(LOCAL_DIR)
    random = backbone.model_copy(update={"pretrained": backbone.pretrained and is_local})
    with torch.device(device), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # loading into the meta device does nothing
        model = backbone_for(random, classes=2, in_chans=in_chans).eval()
        if device == "meta" and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            return dry_run(backbone, "cpu", in_chans=in_chans)  # on the meta device they run step by step, in 10 s
        config: Any = model.pretrained_cfg
        head, size = get_head(model), input_config(model, backbone.fixed_size)["input_size"]
        calls: list[tuple[int, Tensor]] = []
        head.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0].numel(), output)))
        try:
            features = features_of(model, torch.zeros(1, *size))
            calls.clear()
            logits = model(torch.zeros(1, *size))
            resized = backbone.fixed_size is not None and not hasattr(model, "set_input_size")
            has_other_channels = in_chans != 3 or backbone.rgb is not None
            if (
                backbone.pretrained
                and not is_local
                and (has_other_channels or (resized and config.get("fixed_input_size")))
            ):
                _load_shapes(backbone, in_chans)
            # The last step of finetune and export, in which timm checks the size anew.
            with tempfile.TemporaryDirectory() as folder:
                data_config = input_config(model, backbone.fixed_size)
                save_config_for_hf(model, str(Path(folder) / MODEL_CONFIG), data_config=data_config)
        except (*TIMM_ERRORS, TypeError) as error:
            if device == "meta" and "meta" in str(error).lower():
                return dry_run(backbone, "cpu", in_chans=in_chans)
            raise UserError(f"backbone.name: {backbone.name}: {reason_of(error)}") from error
    if features.shape != (1, head.in_features) or not calls:
        raise UserError(f"backbone.name: {backbone.name}: its classifier does not read one row of features an image")
    if [numel for numel, _ in calls] != [head.in_features]:
        if device == "meta":  # CLIP's ResNets classify every place and take one, which is the same: values tell
            return dry_run(backbone, "cpu", in_chans=in_chans)
        is_linear = _is_linear(model, head, size)
    else:
        is_linear = calls[0][1] is logits or isinstance(head, PointwiseHead)
    if not is_linear:
        raise UserError(f"backbone.name: {backbone.name}: its outputs are more than those of one linear classifier")
    return config if isinstance(config, dict) else {}


def _is_linear(model: nn.Module, head: nn.Linear | PointwiseHead, size: list[int]) -> bool:
    """Return whether a model's logits are those of its head on its features, by an image and a head of noise."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(head.weight)
        image = torch.randn(1, *size)
        logits, expected = model(image), head(features_of(model, image))
        return logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)


def _load_shapes(backbone: BackboneConfig, in_chans: int) -> None:
    """Load weights of the backbone's own size and channels into it at ``image_size``; raises as ``create_backbone``."""
    own = create_backbone(backbone.name, pretrained=False, image_size=None, args=backbone.args, in_chans=None)
    overlay = {"state_dict": own.state_dict(), "source": "", "label_offset": 0}
    args = {**backbone.args, "pretrained_cfg_overlay": overlay}
    size, rgb = backbone.fixed_size, backbone.rgb
    create_backbone(backbone.name, pretrained=True, image_size=size, args=args, in_chans=in_chans, rgb=rgb)


def _works(backbone: BackboneConfig, **changes: Any) -> dict[str, Any]:
    """Return what ``dry_run`` does with some keys changed, and nothing where it fails."""
    try:
        return dry_run(backbone.model_copy(update=changes))
    except UserError:
        return {}


def _blamed(backbone: BackboneConfig, error: UserError) -> UserError:
    """Return the error under the key without which the backbone works, with values of it that work."""
    name, cause = backbone.name, error.__cause__
    # Asking the hub again would not help, and some errors name their key.
    if isinstance(cause, OSError | HTTP_ERROR) or str(error).startswith("backbone.args."):
        return error
    reason = reason_of(cause or error).removeprefix(f"backbone.name: {name}: ")
    message = _wrong_argument(backbone, reason) or _wrong_size(backbone, reason)
    if message is None and backbone.pretrained and _works(backbone, pretrained=False):
        message = f"backbone.name: {name}: its weights can't be loaded ({reason}): write it anew by save_for_hf"
    elif message is None and cause is None:
        others = timm.list_models(exclude_filters=["test_*", "*distilled*"])
        near = difflib.get_close_matches(name.partition(".")[0], others, n=2)
        works = [each for each in near if _works(backbone, name=each)] or SURE
        message = f"{str(error).partition('; choose')[0]}; choose another model, such as {', '.join(works)}"
    return UserError(message) if message else error


def _wrong_argument(backbone: BackboneConfig, reason: str) -> str | None:
    """Return the message about ``args`` or a rate, None if the backbone fails without any of them too."""
    name, args = backbone.name, backbone.args
    for key, value in args.items():
        if _works(backbone, args={other: args[other] for other in args.keys() - {key}}):
            return f"backbone.args.{key}: {value!r}: {name} fails ({reason}): {ADVICE.get(key, 'remove it')}"
    if len(args) > 1 and _works(backbone, args={}):
        return f"backbone.args: {args}: {name} fails ({reason}): it works without them"
    for key in ("drop_rate", "drop_path_rate"):
        if getattr(backbone, key) and _works(backbone, **{key: 0.0}):
            return f"backbone.{key}: {name} has none ({reason}): set it to 0"
    return None


def _wrong_size(backbone: BackboneConfig, reason: str) -> str | None:
    """Return the message about ``image_size``, None if the backbone fails at its own size too."""
    size = backbone.fixed_size
    if size is None or not (own := _works(backbone, image_size=None)):
        return None
    problem, own_size = f"backbone.image_size: {size}: {backbone.name} fails ({reason}):", own["input_size"][-1]
    if backbone.pretrained and _works(backbone, pretrained=False):
        return f"{problem} its weights are for {own_size} px: use null, or backbone.pretrained: false"
    sizes = "".join(f"{each}, " for each in _working_sizes(backbone, size))
    return f"{problem} use {sizes}null (its own {own_size})"


def _working_sizes(backbone: BackboneConfig, size: int) -> list[int]:
    """Return the nearest smaller and larger image size that work, among multiples of ``STEPS``."""
    smaller = sorted({(size - 1) // step * step for step in STEPS} - {0}, reverse=True)
    larger = sorted({size // step * step + step for step in STEPS})
    working = ((each for each in sizes if _works(backbone, image_size=each)) for sizes in (smaller, larger))
    return [each for sizes in working for each in list(islice(sizes, 1))]


def _missing_weights(backbone: BackboneConfig, config: dict[str, Any]) -> str | None:
    """Look for the pretrained weights without asking the hub; raises UserError where they can't be had."""
    name, hub, url = backbone.name, config.get("hf_hub_id"), config.get("url")
    if name.startswith(pip_weights.PREFIX):
        pip_weights.find_weights(name)
        return None
    if config.get("source") == "local-dir":
        return None  # the dry run has read them
    if file := config.get("file"):  # of pretrained_cfg_overlay
        if not Path(file).is_file():
            raise UserError(f"backbone.args.pretrained_cfg_overlay: file: {file}: no such file: write its path")
        return None
    if not hub and not url:
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_pretrained(), n=3)
        raise UserError(
            f"backbone.pretrained: timm has no pretrained weights of {name}: set it to false, or choose another model"
            + (f", such as {', '.join(near)}" if near else "")
        )
    if hub:
        repository, _, revision = hub.partition("@")
        try:
            folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
            is_here = any(file.suffix in {".safetensors", ".bin", ".pth"} for file in folder.iterdir())
        except LocalEntryNotFoundError:
            is_here = False
        if not is_here and constants.HF_HUB_OFFLINE:
            raise unfetched(name, "HF_HUB_OFFLINE is set, and they are not in the cache")
    else:
        is_here = (Path(torch.hub.get_dir()) / "checkpoints" / Path(str(url)).name).exists()
    return None if is_here else f"the weights of {name} are not here yet: features will fetch them from {hub or url}"
