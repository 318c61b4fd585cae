"""Recipes: strict YAML that names the stages, their order and every parameter."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Restriction
from spqlm.calibration.gather import CalibrationConfig
from spqlm.errors import SpqError
from spqlm.recipe_like import LIKE, completed
from spqlm.registry import nearest
from spqlm.stages import Stage, available, stage_class

# Bytes of a recipe.
LARGEST = 1_000_000
SHIPPED = Path(__file__).parent / "recipes"


class Recipe(BaseModel):
    """An ordered list of stages and the calibration they share.

    Example:
        import spqlm

        recipe = spqlm.Recipe.from_dict({"stages": [{"quantize": {"mode": "per_tensor"}}]})
        spqlm.compress("demo", "out", recipe=recipe)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    description: str = ""
    calibration: CalibrationConfig = CalibrationConfig()  # type: ignore[call-arg]
    stages: tuple[Stage, ...] = ()

    @field_validator("stages", mode="before")
    @classmethod
    def _by_key(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list of stages, such as `- quantize: {}`")
        return tuple(entry if isinstance(entry, Stage) else _stage(entry) for entry in value)

    @classmethod
    def from_dict(cls, fields: Any, name: str = "recipe") -> Self:
        """Validate parsed YAML.

        Args:
            fields: mapping of the recipe's keys; with `like`, what they leave unsaid is as in the
                shipped recipe of that name.
            name: for messages.

        Raises:
            SpqError: unknown key (names the nearest), value out of range, not a mapping.
        """
        if not isinstance(fields, dict):
            raise SpqError(f"recipe {name!r} must be a mapping with the key `stages`")
        try:
            if LIKE in fields:
                fields = completed(fields, _like(fields[LIKE]).to_dict())
            return cls.model_validate(fields)
        except ValidationError as error:
            raise SpqError(f"recipe {name!r}: {_sentence(cls, error)}") from None
        except SpqError as error:
            raise SpqError(f"recipe {name!r}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with every default written out; `from_dict` reads it back."""
        fields = self.model_dump(mode="json", exclude={"stages"})
        stages = [{stage.key: stage.model_dump(mode="json")} for stage in self.stages]
        return {**fields, "stages": stages}

    def without_training(self) -> Self:
        """The recipe less all that trains."""
        untrained = (stage.untrained() for stage in self.stages)
        stages = tuple(stage for stage in untrained if stage is not None)
        return self.model_copy(update={"stages": stages})

    @property
    def byte_limit(self) -> int | None:
        """Most bytes of all weights on disk, by the strictest stage; None without such a limit."""
        return min((s.byte_limit for s in self.stages if s.byte_limit is not None), default=None)

    def within(self, target_bytes: int) -> Self:
        """The recipe with another byte limit.

        Raises:
            SpqError: no stage of it takes one.
        """
        limited = [stage.within(target_bytes) for stage in self.stages]
        if all(stage is None for stage in limited):
            able = [key for key in available() if stage_class(key)().within(target_bytes)]
            raise SpqError(
                f"a target size needs a recipe with the stage `{'` or `'.join(able)}`, "
                "such as `default`; this one has none"
            )
        pairs = zip(limited, self.stages, strict=True)
        return self.model_copy(update={"stages": tuple(new or stage for new, stage in pairs)})

    def limited(self, limits: Limits) -> Self:
        """The recipe with limits of speed and cache.

        Raises:
            SpqError: no stage of it takes any.
        """
        limited = [stage.limited(limits) for stage in self.stages]
        if all(stage is None for stage in limited):
            raise SpqError(
                "a speed or cache target needs a recipe with the stage `budget`, such as `default`"
            )
        pairs = zip(limited, self.stages, strict=True)
        return self.model_copy(update={"stages": tuple(new or stage for new, stage in pairs)})

    def restricted(self, restriction: Restriction) -> Self:
        """The recipe with what a target asks of how weights are stored.

        Raises:
            SpqError: no stage of it chooses formats, or one offers none that is allowed.
        """
        limited = [stage.restricted(restriction) for stage in self.stages]
        if all(stage is None for stage in limited):
            raise SpqError(
                "only a recipe with the stage `budget`, such as `default`, chooses formats that "
                "suit a target"
            )
        pairs = zip(limited, self.stages, strict=True)
        return self.model_copy(update={"stages": tuple(new or stage for new, stage in pairs)})

    def calibrated_on(self, source: str | Path) -> Self:
        """The recipe with another calibration text.

        Raises:
            SpqError: it has a name that no manifest can hold.
        """
        source = str(source)
        try:
            source.encode()
        except UnicodeEncodeError:
            raise SpqError(f"calibration text {source!r} is no name in UTF-8") from None
        calibration = self.calibration.model_copy(update={"source": source})
        return self.model_copy(update={"calibration": calibration})


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def load_recipe(recipe: "str | Path | Recipe") -> Recipe:
    """A recipe by shipped name or from a YAML file.

    Raises:
        SpqError: no such recipe, not YAML, or not valid.

    Example:
        import spqlm

        print(spqlm.load_recipe("paper").to_dict()["stages"])
    """
    if isinstance(recipe, Recipe):
        return recipe
    name = str(recipe)
    file = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        small = file.is_file() and file.stat().st_size <= LARGEST
    except OSError:  # no name of a file
        small = False
    if not small:
        name = f"{name[:80]}..." if len(name) > 80 else name
        raise SpqError(f"no recipe {name!r}: neither a YAML file nor one of {', '.join(shipped())}")
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise SpqError(f"recipe {name!r} is nested too deeply") from None
    # A ValueError: no UTF-8, or a number of thousands of digits.
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())  # PyYAML's messages have several lines
        raise SpqError(f"recipe {name!r} is not valid YAML: {reason}") from None
    return Recipe.from_dict(fields, name)


def _like(name: Any) -> Recipe:
    """The recipe that another one is like."""
    if name not in shipped():
        close = nearest(str(name), shipped())
        raise SpqError(f"{LIKE}: there is no recipe {name!r}; did you mean {close!r}?")
    return load_recipe(name)


def _stage(entry: Any) -> Stage:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"a stage is one key with its parameters, got {entry!r}")
    key, parameters = next(iter(entry.items()))
    kind = stage_class(str(key))
    if parameters is not None and not isinstance(parameters, dict):
        raise SpqError(f"stage {key!r}: parameters must be a mapping, got {parameters!r}")
    try:
        return kind.model_validate(parameters or {})
    except ValidationError as error:
        raise SpqError(f"stage {key!r}: {_sentence(kind, error)}") from None


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    """The first complaint, with the nearest known key for an unknown one."""
    first = error.errors()[0]
    *parents, last = [str(part) for part in first["loc"]] or [""]
    if first["type"] != "extra_forbidden":
        where = ".".join([*parents, last])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        return f"{where}: {message}{given}" if where else message
    for parent in parents:
        annotation = kind.model_fields[parent].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return f"unknown key {last!r}; did you mean {nearest(last, kind.model_fields)!r}?"
