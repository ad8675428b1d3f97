"""Streams become parts that any process can read: step 1 of `superpose.data.prepare`."""

from pathlib import Path

from superpose.data.readers import RANGE, Part
from superpose.data.text_streams import Stream, Streams, keep, open_stream
from superpose.data.workers import Run


def opened_streams(parts: list[Part], streams: Streams) -> dict[str, Stream]:
    """The streams among some parts, by location."""
    locations = dict.fromkeys(part.source.location for part in parts if part.kind == "stream")
    return {location: open_stream(location, streams) for location in locations}


def kept_streams(parts: list[Part], opened: dict[str, Stream], work: Path, run: Run) -> list[Part]:
    """The parts, with those of streams written to disk; what an earlier, interrupted preparation wrote stays."""
    folders: dict[int, Path] = {}
    from_hub, ours = [], []
    for number, part in enumerate(parts):
        if part.kind != "stream":
            continue
        folders[number] = work / "streams" / f"{number:06d}"
        folders[number].mkdir(parents=True, exist_ok=True)
        stream = opened[part.source.location]
        if stream.has_state:
            from_hub.append((folders[number], (stream.location, part.start), part.source.field, RANGE))
        else:
            ours.append((folders[number], stream.shard(part.start), part.source.field, RANGE))
    if from_hub:
        run(keep, from_hub, "reading the stream")
    # What a caller gives may be of his script alone, which other processes do not run.
    for job in ours:
        keep(job)
    return [
        whole
        for number, part in enumerate(parts)
        for whole in (
            [Part("arrow", (str(file),), part.source) for file in sorted(folders[number].glob("*.arrow"))]
            if number in folders
            else [part]
        )
    ]
