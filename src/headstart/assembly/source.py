"""Opens the source of the pictures that ``prepare`` names."""

from pathlib import Path

from headstart.ground.artifacts import cache_folder
from headstart.ground.params import Prepare, Run
from headstart.libraries.datasets import Digits, Torchvision
from headstart.libraries.sources import ImageFolder, Source
from headstart.libraries.tables import CsvTable


def open_source(prepare: Prepare, run: Run) -> Source:
    """Open ``prepare.source``; raises UserError where it can't be had."""
    kind, _, name = prepare.source.partition(":")
    match kind:
        case "digits":
            return Digits()
        case "torchvision":
            return Torchvision(name, cache_folder(run.cache) / "torchvision")
        case "csv":
            return CsvTable(Path(prepare.path), name)
        case _:
            return ImageFolder(Path(prepare.path))
