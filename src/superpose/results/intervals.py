"""A value and how sure it is, whatever it was measured over: seeds, documents, questions, corpora."""

from dataclasses import dataclass

from pydantic import FiniteFloat


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval.

    Attributes:
        value: as measured.
        low, high: ends of the interval; None where there is no spread to judge by: one seed, one document.
    """

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is told apart from none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spoken(interval: Interval, form: str = "+.4f") -> str:
    """A value and its interval, as in a table: "-0.0356 (-0.0580 to -0.0132)"; quantities have no sign (".4f")."""
    both = ends(interval, form)
    return f"{interval.value:{form}}" + (f" ({both})" if both else "")


def ends(interval: Interval, form: str = "+.4f") -> str:
    """The ends of an interval, "-0.0580 to -0.0132"; nothing where there is none."""
    return "" if interval.low is None or interval.high is None else f"{interval.low:{form}} to {interval.high:{form}}"
