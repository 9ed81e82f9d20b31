"""What every section of ``params.yaml`` is: strict, whole and immutable; and the ranges that several keys share."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class ConfigSection(BaseModel):
    """A part of ``params.yaml``: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, serialize_by_alias=True)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Refuse a key that the stage did not declare: DVC would not know that the stage depends on it."""
            if name in type(self).model_fields:
                section = type(self).__name__.removesuffix("Config").lower()
                raise AttributeError(f"the stage uses {section}.{name} but does not declare it")
            return super().__getattr__(name)
