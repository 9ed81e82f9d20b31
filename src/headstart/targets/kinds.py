"""The targets by the name that ``prepare.target`` gives them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headstart.targets.classes import Classes, ClassesReader
from headstart.targets.grade import Grades, GradesReader
from headstart.targets.labels import Labels, LabelsReader
from headstart.targets.number import Numbers, NumbersReader
from headstart.targets.target import Reader, Target

KINDS: Mapping[str, Any] = {each.kind: each for each in (Classes, Labels, Numbers, Grades)}


def make_target(kind: str, names: Sequence[str], spec: Mapping[str, Any]) -> Target:
    """Return the target that ``Target.spec`` described."""
    target: Target = KINDS[kind](names=names, **spec)
    return target


def describe(target: Target) -> dict[str, Any]:
    """Return what a JSON file has of a target, for ``described``; of classes nothing, as in files of before targets."""
    about = {"kind": target.kind, "spec": target.spec()}
    return {} if target.kind == Classes.kind else {"target": about}


def described(about: Mapping[str, Any], names: Sequence[str]) -> Target:
    """Return the target that ``describe`` described in a JSON file."""
    kind, spec = (about["target"][key] for key in ("kind", "spec")) if "target" in about else (Classes.kind, {})
    return make_target(kind, names, spec)


def make_reader(
    kind: str, columns: Sequence[str], *, separator: str, grades: Sequence[str] | None, fold: bool
) -> Reader:
    """Return what reads a target from the columns of a table: those of ``prepare.target_columns``."""
    readers: dict[str, Callable[[], Any]] = {
        "class": lambda: ClassesReader(columns),
        "labels": lambda: LabelsReader(columns, separator, fold=fold),
        "number": lambda: NumbersReader(columns),
        "grade": lambda: GradesReader(columns, grades),
    }
    reader: Reader = readers[kind]()
    return reader
