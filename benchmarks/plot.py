"""The picture of what things cost against how many jobs the table holds."""

from pathlib import Path

from benchmarks.harness import Result


def sizes(result: Result, file: Path) -> None:
    """Draw a line for each figure whose sides are sizes, as a PNG."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    sides = {size: figures for side, figures in result.samples.items() if (size := number_of(side))}
    names = sorted({name for figures in sides.values() for name in figures if " ms" in name})
    picture, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    axes.set_prop_cycle(color=[mpl.colormaps["tab20"](number) for number in range(20)])
    for name in names:
        points = [(size, middle) for size in sorted(sides) if (middle := _median(sides[size].get(name)))]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="jobs in the table", ylabel="ms")
    picture.suptitle("What everything costs with ever more jobs in the table")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.savefig(file, dpi=110)
    pyplot.close(picture)


def number_of(side: str) -> int | None:
    """How many jobs a side's name says: `1,000,000 jobs`; None: it says no such thing."""
    words = side.replace(",", "").split()
    return int(words[0]) if len(words) == 2 and words[0].isdigit() and words[1] == "jobs" else None


def _median(samples: object) -> float | None:
    import statistics  # noqa: PLC0415

    return statistics.median(samples) if isinstance(samples, list | tuple) and samples else None
