"""`headstart params`: missing keys are added, an overlay is laid over, all else of the file stays."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from headstart.config.completion import complete_params
from headstart.config.loader import load_params, parse_params
from headstart.config.schema import Params
from headstart.core.errors import UserError

COMMITTED = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(COMMITTED, encoding="utf-8")
    return Path("params.yaml")


def overlay(text: str) -> Path:
    Path("overlay.yaml").write_text(text, encoding="utf-8")
    return Path("overlay.yaml")


def without(text: str, *patterns: str) -> str:
    """Remove what each pattern matches; it must match."""
    for pattern in patterns:
        text, count = re.subn(pattern, "", text, flags=re.MULTILINE)
        assert count, pattern
    return text


def difference(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that left and that came."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


def test_a_complete_file_is_not_touched(path: Path) -> None:
    os.utime(path, (0, 0))
    assert complete_params(path) == []
    assert complete_params(path, overlay("finetune: {batch_size: 64, lr: {head: auto}}\n")) == []
    assert path.stat().st_mtime == 0


@pytest.mark.parametrize(
    "patterns",
    [
        [r"(  #.*\n)*  compile: .*\n"],
        [r"(  #.*\n)*  compile: .*\n", r"(  #.*\n)*  clip: .*\n", r"(  #.*\n)*  accumulate: .*\n"],
        [r"(    #.*\n)*    (mixup|cutmix): .*\n"],
        [r"(    #.*\n)*    cutmix: .*\n", r"(  #.*\n)*  seed: 0\n(?=\n# How the models)"],
        [r"(  #.*\n)*  tracking: .*\n"],
        [r"(#.*\n)*evaluate:\n(  .*\n)*\n"],
        [r"(# Where the images.*\n)prepare:\n(  .*\n)*\n"],
        [r"(  #.*\n)*  recipe: .*\n", r"(  #.*\n)*  phase_epochs: .*\n"],
        [r"\n(#.*\n)*run:\n(  .*\n)*"],
        [r"(  #.*\n)*  batch_norm: .*\n", r"(#.*\n)*evaluate:\n(  .*\n)*\n", r"(#.*\n)*export:\n(  .*\n)*\n"],
    ],
)
def test_missing_keys_come_back_where_they_were_with_their_comments(path: Path, patterns: list[str]) -> None:
    older = without(COMMITTED, *patterns)
    path.write_text(older, encoding="utf-8")
    changes = complete_params(path)
    assert path.read_text(encoding="utf-8") == COMMITTED
    assert [change.split()[0] for change in changes] == ["added"] * len(changes)
    assert complete_params(path) == []


@pytest.mark.parametrize(("mark", "newline"), [(b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n")])
def test_what_windows_editors_write_is_read_and_stays(path: Path, mark: bytes, newline: bytes) -> None:
    whole = mark + COMMITTED.encode().replace(b"\n", newline)
    path.write_bytes(whole)
    assert load_params(path) == parse_params(YAML(typ="safe").load(COMMITTED))
    assert complete_params(path) == []
    seed = next(line for line in whole.splitlines(keepends=True) if line.startswith(b"  seed:"))
    path.write_bytes(whole.replace(seed, b"", 1))
    assert complete_params(path) == ["added backbone.seed: 0"]
    assert path.read_bytes().startswith(mark)
    assert path.read_bytes().count(newline) == path.read_bytes().count(b"\n")


def test_another_encoding_is_named(path: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        path.write_text(COMMITTED.replace("λ", "ä"), encoding=encoding, errors="replace")
        with pytest.raises(UserError, match=r"is not YAML in UTF-8 .*: save it in that encoding"):
            complete_params(path)


def test_what_is_added_is_named(path: Path) -> None:
    path.write_text(
        without(COMMITTED, r"^  compile: .*\n", r"^    mixup: .*\n", r"^evaluate:\n(  .*\n)*"), encoding="utf-8"
    )
    assert complete_params(path) == [
        "added finetune.compile: false",
        "added finetune.augment.mixup: 0.0",
        "added evaluate",
    ]


def test_values_comments_order_and_notation_of_the_users_file_stay(path: Path) -> None:
    mine = (
        "# mine\nrun:\n    resume: yes-no  # wrong\n".replace("yes-no", "false")
        + "\n\n# the model\nbackbone: # here\n  seed: 0x10   # hexadecimal\n  name: 'resnet50.a1_in1k'\n\n"
        + 'prepare:\n  path: "data/raw" # quoted\n  # about the source\n  source: imagefolder\n'
    )
    path.write_text(mine, encoding="utf-8")
    complete_params(path)
    left, _ = difference(mine, path.read_text(encoding="utf-8"))
    assert left == []
    params = load_params(path)
    assert (params.run.resume, params.backbone.seed, params.prepare.source) == (False, 16, "imagefolder")
    expected = Params().model_dump()
    expected["run"]["resume"] = False
    expected["backbone"] |= {"seed": 16, "name": "resnet50.a1_in1k"}
    expected["prepare"]["source"] = "imagefolder"
    assert params.model_dump() == expected


def test_a_comment_stays_with_the_key_below_it(path: Path) -> None:
    path.write_text(without(COMMITTED, r"(  #.*\n)*  clip: .*\n"), encoding="utf-8")
    complete_params(
        path,
        overlay(
            "finetune: {groups: [{name: head, match: 'head.*', biases_and_norms: in}, "
            "{name: backbone, match: '.*', biases_and_norms: in}]}\n"
        ),
    )
    left, came = difference(COMMITTED, path.read_text(encoding="utf-8"))
    assert left == [line for line in COMMITTED.splitlines() if line.startswith("  - {name")]
    assert came == [
        "  - {name: head, match: 'head.*', biases_and_norms: in}",
        "  - {name: backbone, match: '.*', biases_and_norms: in}",
    ]


def test_an_overlay_changes_its_keys_alone(path: Path) -> None:
    changes = complete_params(
        path,
        overlay(
            "prepare: {source: 'csv:my table.csv'}\nfinetune:\n  lr: {head: 5e-4}\n  l2:\n    backbone: 3e-5\n"
            "  clip: 1\nprobe: {heads: [], l2: [1, 1e-6]}\nevaluate:\n  top_k: 3\n"
        ),
    )
    assert changes == [
        "changed prepare.source: digits → 'csv:my table.csv'",
        "changed probe.l2: [1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6] → [1, 1e-6]",
        "changed probe.heads: auto → []",
        "changed finetune.lr.head: auto → 5e-4",
        "changed finetune.l2.backbone: 1e-4 → 3e-5",
        "changed finetune.clip: null → 1",
    ]
    left, came = difference(COMMITTED, path.read_text(encoding="utf-8"))
    assert (len(left), came) == (
        6,
        [
            "  source: 'csv:my table.csv'",
            "  l2: [1, 1e-6]",
            "  heads: []",
            "    head: 5e-4",
            "    backbone: 3e-5",
            "  clip: 1",
        ],
    )


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("  args: {}\n", "backbone: {args: {a: 1}}", "  args:\n    a: 1\n"),
        ("  args: {a: 1}  # mine\n", "backbone: {args: {b: 2}}", "  args:\n    b: 2  # mine\n"),
        ("  args:\n    a: 1\n    # of b\n    b: 2\n", "backbone: {args: {}}", "  args: {}\n"),
        ("  args: {}\n  image_size:\n", "backbone: {image_size: 64}", "  args: {}\n  image_size: 64\n"),
        ("  image_size:    # empty\n", "backbone: {image_size: 64}", "  image_size: 64    # empty\n"),
        ("  args: {}\n  name: >-\n    bundled\n\n", "backbone: {name: a}", "  args: {}\n  name: a\n\n"),
        ("  args: {}\n  name: >\n    bundled\n\n", "backbone: {image_size: 64}", None),
    ],
)  # fmt: skip
def test_however_a_value_is_written_it_is_replaced(path: Path, before: str, text: str, after: str | None) -> None:
    present = re.findall(r"^  (\w+):", before, re.MULTILINE)
    older = without(COMMITTED, *(rf"^  {key}: .*\n(?=(  .*\n)*\n# How the frozen)" for key in present))
    older = older.replace("\nbackbone:\n", f"\nbackbone:\n{before}")
    path.write_text(older, encoding="utf-8")
    changed = YAML(typ="safe").load(text)["backbone"]
    complete_params(path, overlay(text))
    written = path.read_text(encoding="utf-8")
    assert after is None or written == older.replace(before, after)
    assert load_params(path).backbone.model_dump().items() >= changed.items()


def test_a_mapping_in_braces_is_completed_too(path: Path) -> None:
    path.write_text(
        re.sub(r"  split:\n(   .*\n)*", "  split: {validation: 0.3}  # mine\n", COMMITTED), encoding="utf-8"
    )
    assert complete_params(path) == ["changed prepare.split: {validation: 0.3} → {validation: 0.3, test: 0.15}"]
    assert "  split:\n    validation: 0.3\n    test: 0.15  # mine\n" in path.read_text(encoding="utf-8")


def test_a_name_that_yaml_reads_as_a_number_stays_a_name(path: Path) -> None:
    complete_params(path, overlay("probe: {class_map: {'1': [a, 2], 'no: way': rest}}\n"))
    assert load_params(path).probe.class_map == {"1": ["a", 2], "no: way": "rest"}


@pytest.mark.parametrize(
    "text",
    [
        "backbone: &b\n  seed: 1\nfinetune:\n  <<: *b\n  epochs: 3\n",
        "finetune:\n  augment:\n    scale: &s [0.5, 1.0]\n    ratio: *s\n",
        "finetune:\n  lr: &n\n    backbone: 1\n    head: 1\n  l2: *n\n",
    ],
)
def test_a_file_with_anchors_is_refused_with_what_to_change_and_stays(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"params.yaml can't be edited here .* by hand: .*added finetune.recipe: lp_ft"):
        complete_params(path, overlay("finetune: {epochs: 4}\n"))
    assert path.read_text(encoding="utf-8") == text


def test_groups_of_ones_own_get_no_numbers_of_other_groups(path: Path) -> None:
    groups: dict[str, Any] = {
        "groups": [{"name": "all", "match": ".*", "biases_and_norms": "in"}],
        "lr": {"all": 0.1},
        "l2": {"all": 1e-4},
    }
    YAML().dump({"finetune": groups}, path)
    complete_params(path)
    finetune = load_params(path).finetune
    assert (finetune.lr, finetune.l2.by_group, finetune.l2.kind) == ({"all": 0.1}, {"all": 1e-4}, "l2")
    assert load_params(path) == load_params(path, partial=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("finetune: {epoch: 3}\n", "overlay.yaml over params.yaml:\n  finetune.epoch: unknown key; did you mean"),
        ("fintune: {epochs: 3}\n", "  fintune: unknown key; did you mean 'finetune'?"),
        ("finetune: {batch_size: 0}\n", "  finetune.batch_size: Input should be greater than or equal to 1 (got 0)"),
        ("finetune: 3\n", "  finetune: Input should be a valid dictionary"),
        ("finetune: {lr: {haed: 1}}\n", "lr.haed: no such group"),
        ("finetune: {optimizer: sgd, momentum: 0.0}\n", "nesterov looks ahead along the momentum"),
        ("", "overlay.yaml must hold the sections"),
        ("- a\n", "overlay.yaml must hold the sections"),
        ("a: [\n", "overlay.yaml is not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_overlay_is_refused_and_the_file_stays(path: Path, text: str, said: str) -> None:
    older = without(COMMITTED, r"^  compile: .*\n")
    path.write_text(older, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        complete_params(path, overlay(text))
    assert said in str(caught.value)
    assert path.read_text(encoding="utf-8") == older
    assert {path.name for path in Path().iterdir()} == {"overlay.yaml", "params.yaml"}


def test_an_overlay_that_is_missing_is_named_alone(path: Path) -> None:
    with pytest.raises(UserError, match=r"^recipes/mine\.yaml does not exist: give a file with some of the keys of"):
        complete_params(path, Path("recipes/mine.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "params.yaml does not exist"),
        ("finetune: {epoch: 3}\n", "params.yaml:\n  finetune.epoch: unknown key; did you mean 'epochs'?"),
        ("finetune: {epochs: two}\n", "params.yaml:\n  finetune.epochs: "),
        ("{prepare: {source: digits}}\n", "params.yaml can't be edited"),
        (
            "prepare: {}\nbackbone: {args: &a {}}\nfinetune:\n  lr: &b\n    {backbone: 1, head: 1}\n  decay: *b\n",
            "finetune",
        ),
        ("backbone: &a {seed: 1}\nfeatures: {}\nrun: {cache: null}\nprobe: {class_map: null}\n", ""),
    ],
)
def test_a_wrong_file_is_refused_and_stays(path: Path, text: str | None, said: str) -> None:
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    if not said:  # mappings in braces are rewritten
        complete_params(path)
        assert load_params(path).backbone.seed == 1
        return
    with pytest.raises(UserError) as caught:
        complete_params(path)
    assert said in str(caught.value)
    assert text is None or path.read_text(encoding="utf-8") == text


def test_a_link_and_its_files_mode_stay(path: Path) -> None:
    Path("elsewhere").mkdir()
    path.rename("elsewhere/params.yaml")
    Path("elsewhere/params.yaml").chmod(0o664)
    path.symlink_to("elsewhere/params.yaml")
    assert complete_params(path, overlay("finetune: {epochs: 3}\n")) == ["changed finetune.epochs: auto → 3"]
    assert path.is_symlink()
    assert Path("elsewhere/params.yaml").stat().st_mode & 0o777 == 0o664
    assert load_params(path).finetune.epochs == 3
