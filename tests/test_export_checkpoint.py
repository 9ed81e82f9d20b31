"""`headstart export-checkpoint CHECKPOINT`."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import nn

from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.export.checkpoint import export_checkpoint
from headstart.models.backbone import create_backbone
from helpers.command import headstart
from helpers.images import CLASSES, params, write_prepared

CHANGES = {"backbone.name": "test_resnet", "export.pictures": 4, "export.formats": [], "prepare.source": "imagefolder"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A project with images, in the working directory, and a model of its backbone."""
    monkeypatch.chdir(tmp_path)
    write_prepared(files=True)
    YAML().dump(params(CHANGES).model_dump(), Path("params.yaml"))
    model = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, seed=3, num_classes=len(CLASSES))
    nn.init.normal_(model.get_classifier().weight)  # type: ignore[operator]
    return model.eval()


def save(model: nn.Module, path: str) -> None:
    weights = model.state_dict()
    if path.endswith(".safetensors"):
        save_file(weights, path)
    elif path.endswith(".ckpt"):  # as Lightning writes it
        inside = {f"model.{name}": value for name, value in weights.items()}
        torch.save({"epoch": 1, "state_dict": inside | {"metric": torch.zeros(1)}}, path)
    else:
        torch.save(weights, path)


@pytest.mark.parametrize("path", ["last.ckpt", "weights.pth", "weights.safetensors"])
def test_any_checkpoint_of_the_model_becomes_a_bundle(trained: nn.Module, path: str) -> None:
    save(trained, path)
    done = headstart("export-checkpoint", path, "--out", "mine")
    assert done.exit_code == 0, done.stderr
    model: Any = timm.create_model("local-dir:mine", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels), trained(pixels))
    about = read_json(Path("mine/config.json"))["headstart"]
    assert (about["temperature"], about["conformal"], about["out_of_distribution"]) == (None, [], None)
    card = Path("mine/README.md").read_text()
    assert f"from the checkpoint {path}" in card
    assert f"- checkpoint: `{sha256(Path(path).read_bytes()).hexdigest()}`" in card
    assert "- onnx" not in card
    assert len({entry.stat().st_mode for entry in Path("mine").iterdir()}) == 1
    assert "This checkpoint was not evaluated" in card
    refused = "error: mine exists already: name another folder with --out, or remove it\n"
    again = headstart("export-checkpoint", "--out", "mine", path)
    assert (again.exit_code, again.stderr) == (1, refused)
    renamed = "headstart export CHECKPOINT is now headstart export-checkpoint CHECKPOINT\n"
    for arguments in (["--out", "mine", path], [path, "--out", "mine"]):
        earlier_name = headstart("export", *arguments)
        assert (earlier_name.exit_code, earlier_name.stderr) == (1, renamed + refused)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_what_is_not_the_models_is_refused_with_a_reason(
    trained: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    Path("damaged.ckpt").write_bytes(b"PK\x03\x04 no zip")
    Path("damaged.safetensors").write_bytes(b"no safetensors")
    torch.save([1, 2], "list.pth")
    other = trained.state_dict() | {"fc.weight": torch.zeros(5, 96), "extra": torch.zeros(1)}
    torch.save(other, "other.pth")
    for path, said in {
        "missing.ckpt": "missing.ckpt does not exist or is no file",
        "evil.ckpt": "evil.ckpt is no checkpoint of tensors and plain values",
        "damaged.ckpt": "damaged.ckpt can't be read",
        "damaged.safetensors": "damaged.safetensors can't be read",
        "list.pth": "list.pth holds no state dict",
        "other.pth": "(2 differ): extra is not the model's; fc.weight is (5, 96), the model's (4, 96)",
    }.items():
        with pytest.raises(UserError) as refused:
            export_checkpoint(Path(path), Path("export-it"), Path("params.yaml"))
        assert said in str(refused.value)
        assert "executed" not in capsys.readouterr().out
        assert not list(Path().glob("export*"))
        assert not list(Path().glob(".export*"))
