import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants

from headstart.core.io import read_json
from headstart.inference.bundle import write_manifest
from headstart.models.backbone import create_backbone, weights_sha256
from helpers.bundles import CLASSES, copy_bundle
from helpers.command import headstart
from helpers.hub_server import TOKEN, HubServer, ask, hub_server

NAME = "somebody/flowers"
Said = Callable[..., tuple[str, str]]
Refusal = Callable[..., str]
# Of huggingface_hub's own call, where it uploads without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = copy_bundle(tmp_path / "export")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Flowers\n", encoding="utf-8")
    write_manifest(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with hub_server() as server:
        ask(server.port, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        session = huggingface_hub.get_session()
        yield server
        client = partial(type(session), event_hooks=session.event_hooks, follow_redirects=True)
        huggingface_hub.set_client_factory(client)  # without the timeout of push


@pytest.fixture
def said() -> Callable[..., tuple[str, str]]:
    """Run the command; return what it said on stdout and stderr."""

    def run(*arguments: str) -> tuple[str, str]:
        answer = headstart("push", "export/", *arguments)
        assert answer.exit_code == 0, answer.stderr
        return answer.stdout, answer.stderr

    return run


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Run the command, which ends with exit code 1; return its message."""

    def run(*arguments: str) -> str:
        answer = headstart("push", "export/", *arguments)
        assert (answer.exit_code, answer.stdout) == (1, "")
        return answer.stderr.partition("error: ")[2]

    return run


def test_what_was_pushed_is_what_timm_loads_by_its_name(bundle: Path, hub: HubServer, said: Said) -> None:
    (bundle / "notes.txt").write_text("of no one's concern", encoding="utf-8")
    out, err = said(NAME)
    assert "warning" not in err
    assert f"timm.create_model('hf-hub:{NAME}', pretrained=True)" in out
    assert f"backbone.name: hf-hub:{NAME}\n" in out
    repository = hub.repositories[NAME]
    assert out.startswith(f"{hub.endpoint}/{NAME}/commit/{repository.head}\n")
    assert len(repository.commits) == 1
    listed = {"manifest.json", *read_json(bundle / "manifest.json")["files"]}
    assert repository.branches["main"] == {name: (bundle / name).read_bytes() for name in listed}
    assert not repository.private
    images = torch.randn(2, 3, 32, 32)
    exported, pushed = (
        timm.create_model(name, pretrained=True).eval() for name in ("local-dir:export", f"hf-hub:{NAME}")
    )
    config = pushed.pretrained_cfg
    assert isinstance(config, dict)
    assert config["label_names"] == CLASSES
    assert torch.equal(pushed(images), exported(images))
    further = create_backbone(f"hf-hub:{NAME}", pretrained=True, image_size=None, args={}, num_classes=7)
    assert weights_sha256(further) == weights_sha256(exported)


def test_a_further_push_takes_what_the_model_no_longer_has_and_leaves_the_rest(
    bundle: Path, hub: HubServer, said: Said
) -> None:
    (bundle / "model.int8.onnx").write_bytes(b"a smaller graph")
    write_manifest(bundle)
    said("flowers")  # of the token's user
    hub.repositories[NAME].branches["main"]["example.jpg"] = b"an image of theirs"
    (bundle / "model.int8.onnx").unlink()
    (bundle / "README.md").write_text("---\nlicense: unknown\n---\n", encoding="utf-8")
    write_manifest(bundle)
    assert "warning: the model card states no licence" in said(NAME)[1]
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2
    assert "model.int8.onnx" not in repository.branches["main"]
    assert repository.branches["main"]["example.jpg"] == b"an image of theirs"
    assert repository.branches["main"]["README.md"] == (bundle / "README.md").read_bytes()


def test_a_branch_of_a_private_repository(bundle: Path, hub: HubServer, said: Said) -> None:
    for _ in range(2):
        out, _ = said(NAME, "--private", "--revision", "v2")
        assert f"hf-hub:{NAME}@v2" in out
    assert hub.repositories[NAME].private
    assert hub.repositories[NAME].branches["main"] == {}
    assert hub.repositories[NAME].branches["v2"]["model.onnx"] == (bundle / "model.onnx").read_bytes()


@pytest.mark.usefixtures("bundle")
def test_a_public_repository_does_not_get_what_is_private(hub: HubServer, refusal: Refusal) -> None:
    assert hub.create({"organization": None, "name": "flowers"})
    assert "is there already and is public" in refusal(NAME, "--private")
    assert hub.repositories[NAME].commits == []


def test_what_is_wrong_here_is_said_before_the_hub_is_asked(
    bundle: Path, hub: HubServer, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can't be a repository's name" in refusal("some/body/else")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert "`hf auth login`, or set HF_TOKEN" in refusal(NAME)
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[::-1])
    assert refusal(NAME).startswith("export/model.onnx is not what manifest.json says")
    (bundle / "manifest.json").unlink()
    assert refusal(NAME).startswith("export/manifest.json can't be read")
    assert hub.requested == []


@pytest.mark.usefixtures("bundle")
def test_what_the_hub_refuses_says_what_to_do(
    hub: HubServer, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = refusal("another/flowers")
    assert "403" in other
    assert "The token must be one that may write to another/flowers" in other
    hub.full = True
    full = refusal(NAME)
    assert f"the push to {NAME} broke off" in full
    assert "not kept" in full
    assert hub.repositories[NAME].commits == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    wrong = refusal(NAME)
    assert wrong.startswith("the hub refuses: ")
    assert f"The token must be one that may write to {NAME}" in wrong
    assert "hf_wrong" not in wrong


@pytest.mark.usefixtures("bundle")
def test_a_hub_that_is_not_there_or_says_nothing_is_not_waited_for(
    hub: HubServer, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.export.push.HUB_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert f"the push to {NAME} broke off (ReadTimeout" in refusal(NAME)
    assert f"the push to {NAME} broke off (ConnectError" in refusal(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(NAME)
    assert hub.requested == []
