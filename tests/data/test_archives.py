"""Sources of many images a file, WebDataset and Parquet: what is listed, read and refused, here and behind URLs."""

import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headstart.config.schema import PrepareConfig, RunConfig
from headstart.core.errors import UserError
from headstart.data import remote
from headstart.data.archives import expand_braces
from headstart.data.source_item import Source, SourceItem
from headstart.data.sources import lock_source, open_source
from headstart.images.decode import BadImageError
from helpers.file_server import FileServer, serve
from helpers.hub_server import TOKEN, ask, hub_server


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | str | int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards(root: Path) -> None:
    """Write two shards as WebDataset's tools write them."""
    for shard in range(2):
        samples = range(3 * shard, 3 * shard + 3)
        tar(root / f"train-{shard:03d}.tar", {f"{i:04d}.{ext}": value for i in samples for ext, value in pair(i)})


def pair(number: int) -> list[tuple[str, bytes | str]]:
    return [("png", png(number)), ("cls", "cat" if number % 2 else "dog")]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(**types: dict[str, Any]) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": types}}).encode()}


def parquet(path: Path, numbers: range, labels: list[Any] | None = None, **more: list[Any]) -> Path:
    """Write a file as the library ``datasets`` does, in row groups of 4, of which reading needs two batches."""
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    labels = [number % 2 for number in numbers] if labels is None else labels
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels), **more})
    told = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": ["dog", "cat"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(told), path, row_group_size=4)
    return path


def hub_layout(root: Path) -> None:
    parquet(root / "data" / "train-00000-of-00002.parquet", range(6))
    parquet(root / "data" / "train-00001-of-00002.parquet", range(6, 9))
    parquet(root / "data" / "test-00000-of-00001.parquet", range(9, 12))


def opened(source: str, path: Path, **settings: Any) -> Source:
    split_folders = settings.get("split_folders")
    prepare = PrepareConfig(source=source, path=str(path), **settings)
    return open_source(prepare, RunConfig(cache=str(path.parent / "cache")), split_folders)


def listed(source: Source) -> dict[str, SourceItem]:
    return {item.source: item for item in source.images()}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "STALLED", 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("*.tar", ["*.tar"]),
    ],
)
def test_braces_are_expanded_as_shells_do(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


@pytest.mark.parametrize("pattern", ["train-{000..001}.tar", "*.tar"])
def test_webdataset(tmp_path: Path, pattern: str) -> None:
    shards(tmp_path)
    source = opened(f"webdataset:{pattern}", tmp_path)
    items = listed(source)
    assert {name: (item.label, item.split, item.problem) for name, item in items.items()} == {
        f"train-{i // 3:03d}.tar/{i:04d}.png": ("cat" if i % 2 else "dog", "train", None) for i in range(6)
    }
    there = pickle.loads(pickle.dumps(source))  # as a worker has it  # noqa: S301
    assert [there.read(name) for name in items] == [png(i) for i in range(6)]


def test_a_sample_says_its_label_in_one_of_three_ways(tmp_path: Path) -> None:
    members: dict[str, bytes | str | int] = {
        "a.jpg": b"a", "a.cls": 7, "b.jpg": b"b", "b.json": json.dumps({"label": "seven", "fine": "7a"}),
        "c.jpg": b"c", "c.txt": " seven \n", "deep/er/d.one.jpg": b"d", "deep/er/d.one.cls": 1, "notes.md": "no image",
        ".hidden.jpg": b"x", "e.jpg": b"e", "f.jpg": b"f", "f.json": "{", "g.jpg": b"g", "g.png": b"g", "g.cls": 1,
    }  # fmt: skip
    items = listed(opened(f"webdataset:{tar(tmp_path / 'all.tar', members).name}", tmp_path))
    labels = {name.removeprefix("all.tar/"): item.label for name, item in items.items() if item.problem is None}
    assert labels == {"a.jpg": "7", "b.jpg": "seven", "c.jpg": "seven"}
    problems = {name.removeprefix("all.tar/"): item.problem for name, item in items.items() if item.problem}
    assert problems["e.jpg"] == "has no label: no cls, json or txt"
    assert str(problems["f.jpg"]).startswith("its label can't be read")
    assert str(problems["g.jpg"]).startswith("its sample has the images jpg, png")
    columns = {"image": "png", "label": "fine"}
    named = listed(opened("webdataset:all.tar", tmp_path, columns=columns))
    assert named["all.tar/b.jpg"].label == "7a"
    assert "all.tar/g.png" in named


def test_samples_of_several_images_are_told_apart_by_their_suffix(tmp_path: Path) -> None:
    members: dict[str, bytes | str | int] = {"a.left.jpg": b"l", "a.right.jpg": b"r", "a.cls": "x"}
    tar(tmp_path / "all.tar", members)
    items = listed(opened("webdataset:all.tar", tmp_path, columns={"image": "right.jpg"}))
    assert [(item.source, item.label) for item in items.values()] == [("all.tar/a.right.jpg", "x")]


def test_links_in_an_archive_are_bad_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("a.cls", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            archive.addfile(info)
    (item,) = opened("webdataset:all.tar", tmp_path).images()
    assert item.problem


@pytest.mark.parametrize("keep", [100, 700, 2_000, -1_024, -10_240, 0])
def test_a_cut_archive_is_refused(tmp_path: Path, keep: int) -> None:
    """At every place, also between two members, which tarfile takes for the end."""
    path = tar(tmp_path / "all.tar", {f"{i}.{ext}": value for i in range(4) for ext, value in pair(i)})
    size = path.stat().st_size
    with tarfile.open(path) as archive:
        ends = max(member.offset_data + 512 for member in archive)
    path.write_bytes(path.read_bytes()[: keep if keep >= 0 else min(size + keep, ends)])
    with pytest.raises(UserError, match=r"all\.tar is (cut|no tar)"):
        listed(opened("webdataset:all.tar", tmp_path))


def test_a_compressed_archive_and_one_without_images_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "all.tar", {"a.txt": "text"})
    with pytest.raises(UserError, match=r"all\.tar: no image is in this archive"):
        listed(opened("webdataset:all.tar", tmp_path))
    with pytest.raises(UserError, match=r"must be plain \.tar"):
        opened("webdataset:all.tar.gz", tmp_path)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_pattern_that_names_nothing_or_leads_away_is_refused(tmp_path: Path, kind: str) -> None:
    shards(tmp_path / "a")
    suffix = {"webdataset": "tar", "parquet": "parquet"}[kind]
    with pytest.raises(UserError, match=rf"no file below .* is b-000\.{suffix}"):
        listed(opened(f"{kind}:b-{{000..001}}.{suffix}", tmp_path / "a"))
    with pytest.raises(UserError, match="counts downwards"):
        listed(opened(f"{kind}:b-{{3..1}}.{suffix}", tmp_path / "a"))
    with pytest.raises(UserError, match=rf"prepare\.source: (x\*\*\.{suffix}: |no file below)"):
        listed(opened(f"{kind}:x**.{suffix}", tmp_path / "a"))
    with pytest.raises(UserError, match="leads out of"):
        listed(opened(f"{kind}:../*.{suffix}", tmp_path / "a"))
    with pytest.raises(UserError, match="is not a folder"):
        listed(opened(f"{kind}:*.{suffix}", tmp_path / "nowhere"))


def test_parquet_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    hub_layout(tmp_path)
    source = opened("parquet:data/*.parquet", tmp_path)
    items = listed(source)
    assert len(items) == 12
    first = items["data/train-00000-of-00002.parquet/0000000"]
    assert (first.label, first.split, first.problem) == ("dog", "train", None)
    assert items["data/test-00000-of-00001.parquet/0000002"].split == "test"
    there = pickle.loads(pickle.dumps(source))  # noqa: S301
    order = sorted(items, key=lambda name: ("test" in name, name))
    assert [there.read(name) for name in order] == [png(i) for i in range(12)]
    assert [there.read(name) for name in reversed(order)] == [png(i) for i in reversed(range(12))]


def test_parquet_columns_can_be_named_and_others_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "img": pa.array([png(i) for i in range(4)]),
            "thumb": pa.array([b""] * 4),
            "fine": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "part": ["train", "train", "val", "val"],
            "camera": ["x", "x", "y", None],
            "year": [1, 2, 3, 4],
            "score": [0.5] * 4,
        }
    )
    pq.write_table(table, tmp_path / "all.parquet")
    with pytest.raises(UserError, match="img, thumb could be the image"):
        opened("parquet:all.parquet", tmp_path)
    with pytest.raises(UserError, match="no column could be the label"):
        opened("parquet:all.parquet", tmp_path, columns={"image": "img"})
    with pytest.raises(UserError, match="has no column imgs"):
        opened("parquet:all.parquet", tmp_path, columns={"image": "imgs", "label": "fine"})
    with pytest.raises(UserError, match="holds no images"):
        opened("parquet:all.parquet", tmp_path, columns={"image": "year", "label": "fine"})
    with pytest.raises(UserError, match=r"score of all\.parquet can't be the label"):
        opened("parquet:all.parquet", tmp_path, columns={"image": "img", "label": "score"})
    columns = {"image": "img", "label": "fine", "split": "part", "group": "camera"}
    source = opened("parquet:all.parquet", tmp_path, columns=columns)
    items = listed(source)
    assert source.metadata_columns == ["year"]
    assert [(item.label, item.split, item.group, item.metadata) for item in items.values()] == [
        ("a", "train", "x", ("1",)), ("b", "train", "x", ("2",)), ("a", "validation", "y", ("3",)),
    ]  # fmt: skip


def test_rows_without_a_label_or_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.parquet", range(3), [0, -1, 1])
    items = listed(opened("parquet:train.parquet", tmp_path))
    assert [item.problem for item in items.values()] == [None, "has no label", None]
    with pytest.raises(UserError, match="7 is none of the 2 classes"):
        listed(opened(f"parquet:{parquet(path, range(1), [7]).name}", tmp_path))
    rows = pa.array([{"bytes": None, "path": "a.png"}, None], IMAGE)
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), path)
    source = opened("parquet:train.parquet", tmp_path)
    with pytest.raises(BadImageError, match=r"no bytes, only the path a\.png"):
        source.read("train.parquet/0000000")
    with pytest.raises(BadImageError, match="empty"):
        source.read("train.parquet/0000001")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "all.parquet", range(9))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"all\.parquet is no Parquet file, or damaged"):
        opened("parquet:all.parquet", tmp_path)
    parquet(tmp_path / "all-1.parquet", range(3))
    pq.write_table(pa.table({"image": [b""], "labels": [0]}), tmp_path / "all-2.parquet")
    with pytest.raises(UserError, match=r"all-2\.parquet has no column label"):
        listed(opened("parquet:all-*.parquet", tmp_path))


def test_files_of_unclear_splits_are_refused_until_it_is_said(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", range(3))
    parquet(tmp_path / "more.parquet", range(3, 6))
    with pytest.raises(UserError, match=r"train-0\.parquet say by their names .* more\.parquet do not"):
        listed(opened("parquet:*.parquet", tmp_path))
    items = listed(opened("parquet:*.parquet", tmp_path, split_folders={}))
    assert {item.split for item in items.values()} == {None}
    with pytest.raises(UserError, match="only imagefolder"):
        listed(opened("parquet:*.parquet", tmp_path, split_folders={"more": "test"}))


def test_columns_of_a_source_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare\.columns: imagefolder has no columns"):
        opened("imagefolder", tmp_path, columns={"label": "x"})


WRITERS = {"webdataset": shards, "parquet": hub_layout}
PATTERNS = {"webdataset": "train-{000..001}.tar", "parquet": "data/*.parquet"}


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """The host and port of an S3 server."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(match for line in process.stderr if (match := re.search(r"http://(127\.0\.0\.1:\d+)", line)))
        yield found[1]
        process.terminate()


class Bucket(NamedTuple):
    """A bucket of an S3 server, which is asked through another server that has faults."""

    name: str
    s3_address: str
    server: FileServer

    def put(self, name: str, content: bytes) -> None:
        put(self.s3_address, f"/{self.name}/{name}", content)


@pytest.fixture
def bucket(server: FileServer, s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import s3fs  # noqa: PLC0415  (slow, and others need none)

    name = f"b{time.monotonic_ns()}"
    put(s3_address, f"/{name}")
    server.upstream = s3_address
    for key, value in {"ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    yield Bucket(name, s3_address, server)
    s3fs.S3FileSystem.clear_instance_cache()


def put(address: str, path: str, content: bytes = b"") -> None:
    connection = HTTPConnection(address)
    connection.request("PUT", path, content)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder"])
@pytest.mark.parametrize("fault", ["none", "503", "drop", "stall", "short"])
def test_behind_s3_all_is_as_here_whatever_the_network_does(
    tmp_path: Path, bucket: Bucket, kind: str, fault: str
) -> None:
    server = bucket.server
    source = lay_out_remotely(kind, server).replace(server.url, f"s3://{bucket.name}")
    names = [path.relative_to(server.folder).as_posix() for path in server.folder.rglob("*") if path.is_file()]
    for name in names:
        bucket.put(name, (server.folder / name).read_bytes())
    opened_here = locked(source, tmp_path / "source.lock")
    for name in names:
        if fault != "none" and not (kind == "imagefolder" and fault == "short"):
            server.faults[f"/{bucket.name}/{name}"] = [fault]
    items = listed(opened_here)
    assert sorted(opened_here.read(name) for name in items) == sorted(png(i) for i in range(len(items)))
    assert len(items) == (12 if kind == "parquet" else 6)


def lay_out_remotely(kind: str, server: FileServer) -> str:
    """Lay out a source in the server's folder; return ``prepare.source``."""
    if kind in WRITERS:
        WRITERS[kind](server.folder)
        return f"{kind}:{server.url}/{PATTERNS[kind]}"
    for i in range(6):
        path = server.folder / "raw" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return f"imagefolder:{server.url}/raw"


def locked(source: str, lock: Path) -> Source:
    lock_source(PrepareConfig(source=source, path=str(lock)))
    return opened(source, lock)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder"])
@pytest.mark.parametrize("fault", ["none", "503", "drop", "stall", "short"])
def test_behind_a_url_all_is_as_here_whatever_the_network_does(
    tmp_path: Path, server: FileServer, kind: str, fault: str
) -> None:
    source = locked(lay_out_remotely(kind, server), tmp_path / "source.lock")
    if fault != "none":
        for path in server.folder.rglob("*"):
            name = f"/{path.relative_to(server.folder).as_posix()}"
            server.faults[name] = [fault] * (path.is_file() and not (kind == "imagefolder" and fault == "short"))
    items = listed(source)
    assert len(items) == (12 if kind == "parquet" else 6)
    images = [source.read(name) for name in items]
    assert sorted(images) == sorted(png(i) for i in range(len(items)))
    if kind != "imagefolder":
        folder, _, pattern = PATTERNS[kind].rpartition("/")
        assert items == listed(opened(f"{kind}:{pattern}", server.folder / folder))


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder"])
@pytest.mark.parametrize("fault", ["503", "drop"])
def test_a_network_that_fails_for_good_is_named_and_makes_no_image_bad(
    tmp_path: Path, server: FileServer, kind: str, fault: str
) -> None:
    source = locked(lay_out_remotely(kind, server), tmp_path / "source.lock")
    items = listed(source)
    for path in server.folder.rglob("*.*"):
        server.faults[f"/{path.relative_to(server.folder).as_posix()}"] = [fault, "always"]
    with pytest.raises(UserError, match=rf"{server.url}/.* can't be read, after 5 attempts"):
        pickle.loads(pickle.dumps(source)).read(next(iter(items)))  # noqa: S301


def test_a_server_without_ranges_or_sizes_is_refused(tmp_path: Path, server: FileServer) -> None:
    source = lay_out_remotely("webdataset", server)
    server.faults["/train-000.tar"] = ["whole", "always"]
    tar(server.folder / "train-000.tar", {f"{i}.{ext}": value for i in range(900) for ext, value in pair(i % 200)})
    with pytest.raises(UserError, match="knows no ranges"):
        listed(locked(source, tmp_path / "source.lock"))
    server.sizes_told = False
    with pytest.raises(UserError, match="does not say how large it is"):
        lock_source(PrepareConfig(source=source, path=str(tmp_path / "source.lock")))


def test_a_shard_that_is_lost_is_named(tmp_path: Path, server: FileServer) -> None:
    source = lay_out_remotely("webdataset", server)
    (server.folder / "train-001.tar").unlink()
    with pytest.raises(UserError, match=r"train-001\.tar: there is no such file"):
        lock_source(PrepareConfig(source=source, path=str(tmp_path / "source.lock")))
    with pytest.raises(UserError, match="nothing is there"):
        lock_source(PrepareConfig(source=f"parquet:{server.url}/*.parquet", path=str(tmp_path / "source.lock")))


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder"])
def test_what_differs_from_the_lock_is_refused(tmp_path: Path, server: FileServer, kind: str) -> None:
    lock = tmp_path / "source.lock"
    source = lay_out_remotely(kind, server)
    with pytest.raises(UserError, match="run `headstart lock-source`"):
        listed(opened(source, lock))
    listed(locked(source, lock))
    first = min(path for path in server.folder.rglob("*.*") if path.is_file())
    first.write_bytes(first.read_bytes() + b"\0")
    with pytest.raises(UserError, match=rf"{first.name}: has changed") as told:
        listed(opened(source, lock))
    assert "`headstart lock-source` writes down" in str(told.value)
    with pytest.raises(UserError, match="was written for"):
        listed(opened(f"webdataset:{server.url}/other.tar", lock))


def test_a_lock_is_for_urls(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no URL"):
        lock_source(PrepareConfig(source="imagefolder", path=str(tmp_path)))
    with pytest.raises(UserError, match=r"set data/source\.lock"):
        lock_source(PrepareConfig(source="parquet:s3://bucket/*.parquet", path=str(tmp_path)))


def test_the_contents_of_a_remote_archive_are_read_once(tmp_path: Path, server: FileServer) -> None:
    source = lay_out_remotely("webdataset", server)
    listed(locked(source, tmp_path / "source.lock"))
    before = len([each for each in server.requests if each[0] == "GET"])
    listed(opened(source, tmp_path / "source.lock"))
    assert len([each for each in server.requests if each[0] == "GET"]) == before


def test_a_table_may_name_urls(tmp_path: Path, server: FileServer) -> None:
    lay_out_remotely("imagefolder", server)
    root = tmp_path / "raw"
    root.mkdir()
    rows = [f"{server.url}/raw/{'cat' if i % 2 else 'dog'}/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)]
    (root / "all.csv").write_text("\n".join(["path,label", *rows, f"{server.url}/raw/gone.png,cat"]) + "\n")
    source = opened("csv:all.csv", root)
    items = listed(source)
    assert [source.read(name) for name in list(items)[:6]] == [png(i) for i in range(6)]
    with pytest.raises(BadImageError, match="no such file"):
        source.read(list(items)[6])
    (root / "all.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    lock_source(PrepareConfig(source="csv:all.csv", path=str(root)))
    assert (root / "source.lock").exists()
    (server.folder / "raw" / "dog" / "0.png").write_bytes(png(77))
    with pytest.raises(UserError, match=r"0\.png: has changed"):
        listed(opened("csv:all.csv", root))


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_layout(tmp_path / "repository")
    with hub_server() as hub:
        ask(hub.port, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.publish("somebody/pets", tmp_path / "repository")
        source = locked("hf:somebody/pets", tmp_path / "source.lock")
        items = listed(source)
        assert sorted(source.read(name) for name in items) == sorted(png(i) for i in range(12))
        assert {item.split for item in items.values()} == {"train", "test"}
        with pytest.raises(UserError, match=r"nothing is there that hf://datasets/somebody/none"):
            lock_source(PrepareConfig(source="hf:somebody/none", path=str(tmp_path / "source.lock")))
