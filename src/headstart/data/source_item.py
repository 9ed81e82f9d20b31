"""What a source of images is: it lists images, then reads each one by its name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headstart.data.dataset import Split
from headstart.data.image_info import SourceContent
from headstart.targets.target import Reader


@dataclass(frozen=True, slots=True)
class SourceItem:
    """An image as its source lists it, before it is read.

    Attributes:
        source: its name, unique in the source; of a file, its posix path relative to the source's folder.
        label: its class, or what the target's reader made of it; None if only reading the image reveals it, or if it
            has none, as ``problem`` says.
        split: as the source assigns it.
        group: images of one group stay in one split.
        metadata: the values of the source's ``metadata_columns``.
        problem: why it is bad, if the listing already shows that.
    """

    source: str
    label: str | None
    split: Split | None = None
    group: str | None = None
    metadata: tuple[str, ...] = ()
    problem: str | None = None


class Source(Protocol):
    """Lists images, then reads each one by its name.

    Attributes:
        root: the folder with the images; None where they are no files of this machine's.
        metadata_columns: names of further values that each image has, which the manifest keeps.
        reader: reads what is learned; ``SourceItem.label`` is what it returns.
        in_memory: whether all pixels are in memory: pickling them to worker processes would cost more than it saves.
    """

    reader: Reader
    root: Path | None = None
    metadata_columns: Sequence[str] = ()
    in_memory: bool = False

    def images(self) -> Iterator[SourceItem]:
        """Yield the images in any order, without reading them; raises UserError."""

    def read(self, source: str) -> SourceContent:
        """Read one image; raises BadImageError."""
