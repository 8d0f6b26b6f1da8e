"""Samples, what they are to reach, and how both are shown."""

import json
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Series:
    """Repeated measurements of one thing."""

    name: str
    unit: str = "ms"
    values: list = field(default_factory=list)

    def add(self, value):
        self.values.append(value)

    @property
    def median(self):
        return median(self.values)

    @property
    def least(self):
        return min(self.values)


@dataclass
class Check:
    """A number made of medians, the same made of minima, and the most that it may be (nothing, if it is only told)."""

    name: str
    of_medians: float
    of_minima: float
    limit: float | None = None
    unit: str = ""


def ratio(name, ours, theirs, limit=None):
    return Check(name, ours.median / theirs.median, ours.least / theirs.least, limit, "x")


def difference(name, ours, theirs, limit=None):
    return Check(name, ours.median - theirs.median, ours.least - theirs.least, limit, ours.unit)


def absolute(name, ours, limit=None):
    return Check(name, ours.median, ours.least, limit, ours.unit)


def show(series, checks):
    width = max(len(one.name) for one in [*series, *checks])
    print(f"\n{'measured':<{width}}  rounds     median        min")
    for one in series:
        print(f"{one.name:<{width}}  {len(one.values):6} {one.median:10.2f} {one.least:10.2f} {one.unit}")
    print(f"\n{'compared':<{width}}         of medians  of minima      limit")
    for check in checks:
        limit = "" if check.limit is None else f"{check.limit:10.2f} {'met' if _met(check) else 'MISSED'}"
        print(f"{check.name:<{width}}         {check.of_medians:10.2f} {check.of_minima:10.2f} {limit:>17} {check.unit}")


def _met(check):
    return check.limit is None or check.of_medians <= check.limit


def write(path, machine, series, checks):
    content = {
        "machine": machine,
        "series": [
            {"name": one.name, "unit": one.unit, "median": one.median, "min": one.least, "values": one.values}
            for one in series
        ],
        "checks": [
            {
                "name": check.name,
                "unit": check.unit,
                "of_medians": check.of_medians,
                "of_minima": check.of_minima,
                "limit": check.limit,
                "met": _met(check),
            }
            for check in checks
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
