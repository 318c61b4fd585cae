"""What a model may cost: bytes on disk, time of a step, bytes of the cache; alone or together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spqlm.allocation.resources import Cache, Disk, Resource, StepTime
from spqlm.allocation.sizes import Sizes
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.model.extent import Extent
from spqlm.model.view import ModelView, Named
from spqlm.profile import Profile
from spqlm.units import Speed, parse_speed

LARGEST_PROFILE = 10**8


def read_profile(file: str | Path) -> Profile:
    """A profile that `spq profile --output` wrote.

    Raises:
        SpqError: there is none, or it is none.
    """
    path = Path(file)
    try:
        if path.stat().st_size > LARGEST_PROFILE:
            raise SpqError(f"{str(file)!r} is too large for a profile")
        return Profile.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpqError(f"cannot read the profile {str(file)!r}: {error.strerror}") from None
    except (ValidationError, UnicodeError):
        raise SpqError(
            f"{str(file)!r} is no profile; write one with `spq profile MODEL --output FILE`"
        ) from None


class Limits(BaseModel):
    """What a model may take besides bytes on disk, predicted from times of this machine.

    Example:
        import spqlm

        limits = spqlm.Limits(decode="2x", prefill="1.5x", kv=0.5)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decode: str | None = Field(
        None,
        description="speed of a decode step: `2x` that of the model as it is, `120tok/s` over all "
        "sequences, or `8ms`",
    )
    prefill: str | None = Field(
        None, description="speed of reading a prompt of `context` tokens, in the same ways"
    )
    kv: float | None = Field(
        None, gt=0, le=1, description="share of the bytes that a token leaves in the cache"
    )
    batch: int = Field(1, ge=1, description="sequences that decode at once")
    context: int = Field(
        512, ge=1, description="tokens of a prompt, which are in the cache when decoding is timed"
    )
    profile: Profile | None = Field(
        None,
        exclude=True,
        description="file that `spq profile` wrote, of another machine; null measures this one",
    )

    @field_validator("decode", "prefill")
    @classmethod
    def _is_speed(cls, given: str | None) -> str | None:
        if given is not None:
            parse_speed(given)
        return given

    @field_validator("profile", mode="before")
    @classmethod
    def _from_file(cls, given: Any) -> Any:
        return read_profile(given) if isinstance(given, str | Path) else given

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return self.timed or self.kv is not None

    def over(self, others: "Limits") -> "Limits":
        """These limits, and those of `others` wherever these have the default."""
        own, unsaid = dict(self), {k: field.default for k, field in Limits.model_fields.items()}
        kept = {k: value for k, value in dict(others).items() if own[k] == unsaid[k]}
        return Limits(**{**own, **kept})

    @property
    def timed(self) -> bool:
        """Whether a speed is asked for, which takes a profile."""
        return self.decode is not None or self.prefill is not None


@dataclass(frozen=True)
class Limit:
    """The most that a model may cost of one resource.

    Attributes:
        resource: that is limited.
        most: that it may cost.
        fixed: what no choice changes of that.
        dense: what the model costs as it is.
    """

    resource: Resource
    most: float
    fixed: float
    dense: float

    @property
    def available(self) -> float:
        """What is left for the weights that are decided on; may be less than nothing."""
        return self.most - self.fixed

    def shown(self, amount: float) -> str:
        """An amount in words, with how much faster or smaller than the dense model that is."""
        found = f"{amount / self.resource.per_unit:.2f} {self.resource.unit}"
        if isinstance(self.resource, Disk) or amount <= 0:
            return found
        return f"{found} ({self.dense / amount:.2f}x)"


@dataclass(frozen=True)
class Target:
    """One thing that was asked for.

    Attributes:
        resource: that is limited.
        most: from what the model costs as it is.
    """

    resource: Resource
    most: Callable[[float], float]

    def limit(self, view: ModelView, decided: Sequence[Named]) -> Limit:
        """With what stays as it is paid for."""
        fixed = self.resource.fixed(view, decided)
        shapes = [(named, named.module.weight.shape) for named in decided]
        products = sum(self.resource.of_weight(n, Dense(), *shape) for n, shape in shapes)
        return Limit(self.resource, self.most(fixed + products), fixed, fixed + products)


def targets(view: ModelView, size: int | None, limits: Limits, sizes: Sizes) -> list[Target]:
    """What was asked for, the size first, as the file counts it that the model goes to.

    Raises:
        SpqError: a cache is to shrink whose parts are not known.
    """
    found = [] if size is None else [Target(Disk(sizes), lambda _: size)]
    if limits.decode is not None:
        found.append(_timed(view, limits, "decode", parse_speed(limits.decode), limits.batch))
    if limits.prefill is not None:
        found.append(_timed(view, limits, "prefill", parse_speed(limits.prefill), limits.context))
    if limits.kv is not None:
        share = limits.kv
        if not Extent.of(view).groups:
            kind = view.model.config.model_type
            raise SpqError(
                f"the cache of {kind!r} cannot be made smaller: it is not known which rows belong "
                "to a key/value head"
            )
        found.append(Target(Cache.of(view), lambda dense: share * dense))
    return found


def _timed(
    view: ModelView,
    limits: Limits,
    kind: Literal["decode", "prefill"],
    speed: Speed,
    tokens: int,
) -> Target:
    if limits.profile is None:
        raise SpqError("a speed target needs a profile: spqlm.profiling.timed takes one")
    step = StepTime(limits.profile, kind, view.tied)
    return Target(step, lambda dense: speed.milliseconds(dense, tokens))
