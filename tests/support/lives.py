"""Which lives the suites of faults interrupt, and what judges a lake afterwards."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """One life: functions that a `Zygote` calls."""

    live: str
    judge: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.live.split(".")[1].split("_")[0], *self.arguments))


SMALL = Script("support.small_life:live", "support.small_life:judge")
LATER = [
    Script("support.later_life:live", f"support.later_life:judge_{cold}", (cold,))
    for cold in ("parquet", "delta")
]
DELTALAKE = Script("support.delta_life:live", "support.delta_life:judge")
