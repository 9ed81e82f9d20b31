"""The base of every section of ``params.yaml``, and the ranges of values that several keys share."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
UpToOne = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Auto = Literal["auto"]
"""Beside a key's other values: chosen from the data and the backbone (``training.resolve``)."""


class ConfigSection(BaseModel):
    """A section of ``params.yaml``: strict types, unknown keys refused, immutable.

    The docstring below a key is its description, in Markdown and wrapped by hand: it becomes the comment in
    ``params.yaml`` and goes into ``docs/params.md``.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, serialize_by_alias=True, use_attribute_docstrings=True
    )

    def values_by_key(self) -> dict[str, Any]:
        """Return the values by their keys in ``params.yaml`` (``from``, not ``from_``)."""
        return {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Refuse a key that the stage did not declare: DVC would not know that the stage depends on it."""
            if name in type(self).model_fields:
                section = type(self).__name__.removesuffix("Config").lower()
                raise AttributeError(f"the stage uses {section}.{name} but does not declare it")
            return super().__getattr__(name)
