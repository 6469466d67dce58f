# SPDX-License-Identifier: Apache-2.0
"""The parts of the page that are words, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from ahpa_scale.report.curves import last_speed, last_value
from ahpa_scale.report.elements import Content, node, table
from ahpa_scale.report.evaluation import Evaluation, Race, differing, races, title_of
from ahpa_scale.report.figures import TOTAL
from ahpa_scale.report.history import Session, State, state_of
from ahpa_scale.report.plots import colour_of
from ahpa_scale.report.runs import Run
from ahpa_scale.report.settings_file import as_yaml, differences
from ahpa_scale.report.words import UNKNOWN, count, interval, moment, number

#: Rows of an evaluation's table: the newest.
_MOST_ROWS = 50
_MOST_EVENTS = 30


def cards(runs: Sequence[Run], now: float) -> list[Content]:
    """What a tired reader wants of each run: its state, loss, speed and best figures."""
    return [
        node("div", *(_card(run, place, now) for place, run in enumerate(runs)), class_="cards")
    ]


def _card(run: Run, place: int, now: float) -> Element:
    state = _state(run, now)
    facts = [("batches", _progress(run))]
    if run.metrics is not None and run.metrics.batches:
        facts.append(("last loss", number(last_value(run.metrics, TOTAL))))
        facts.append(("images/s", number(last_speed(run.metrics))))
    evaluation = run.evaluation
    for name in evaluation.names[:2] if evaluation else ():
        best = evaluation.best(name) if evaluation else None
        if best is not None:
            facts.append((f"best {title_of(name)}", f"{number(best[1])} at batch {count(best[0])}"))
    if run.sessions:
        facts.append(("restarts", count(len(run.sessions) - 1)))
    if len(run.sessions) > 1:
        facts.append(("before that", run.sessions[-2].end))
    if run.metrics is not None and run.metrics.nonfinite:
        facts.append(("rows not finite", count(run.metrics.nonfinite)))
    facts.append(("last written", f"{moment(run.written)} UTC" if run.written else UNKNOWN))
    pairs = [part for name, value in facts for part in (node("dt", name), node("dd", value))]
    return node(
        "article",
        node("h3", _swatch(place), run.name),
        node("p", state.text, class_=f"state {state.kind}"),
        node("dl", *pairs),
        node("p", run.where, class_="quiet"),
        class_="card",
    )


def _state(run: Run, now: float) -> State:
    quiet = None if run.written is None else max(0.0, now - run.written)
    return state_of(list(run.sessions), run.batch, run.planned, quiet)


def _progress(run: Run) -> str:
    if run.batch is None or not run.planned:
        return count(run.batch)
    share = min(1.0, run.batch / run.planned)
    return f"{run.batch:,} of {run.planned:,} ({share:.0%})"


def _swatch(place: int) -> Element:
    style = f"background:{colour_of(place)}"
    return node("span", class_="swatch", style=style, aria_hidden="true")


def comparison(runs: Sequence[Run]) -> list[Content]:
    """When the other runs are as good as the first one's best checkpoint."""
    if len(runs) < 2:
        return []
    first = runs[0]
    if first.evaluation is None:
        said = f"{first.name} has no evaluation rows, so there is nothing to reach."
        return [node("p", said, class_="quiet")]
    rows: list[list[Content]] = []
    remarks: list[Content] = []
    for other in runs[1:]:
        if other.evaluation is None:
            remarks.append(_quiet(f"{other.name} has no evaluation rows."))
            continue
        odd = differing(first.evaluation, other.evaluation)
        if odd:
            words = f"{other.name} was evaluated with other settings ({', '.join(odd)}), "
            remarks.append(_quiet(f"{words}so it is not compared."))
            continue
        rows += [_race(other, race) for race in races(first.evaluation, other.evaluation)]
    header = [
        "run",
        "figure",
        "target",
        "at batch",
        "reached at",
        "ratio",
        "own best",
    ]
    told = (
        f"The target is the best checkpoint of {first.name}. It is reached at the first evaluated "
        "batch that is as good. A ratio below 1 is fewer batches."
    )
    shown: list[Content] = [node("p", told), table(header, rows, range(2, 7))] if rows else []
    return [*shown, *remarks]


def _race(other: Run, race: Race) -> list[Content]:
    ratio = "" if race.ratio is None else f"{race.ratio:.2f}"
    reached = "not reached" if race.batch is None else count(race.batch)
    target = [number(race.target), count(race.first_batch)]
    return [other.name, title_of(race.figure), *target, reached, ratio, number(race.best)]


def samples(runs: Sequence[Run]) -> list[Content]:
    """A strip of pictures for each run."""
    content: list[Content] = []
    for run in (run for run in runs if run.samples):
        content += [node("h3", run.name)] if len(runs) > 1 else []
        pictures = [
            node(
                "figure",
                node(
                    "img",
                    src=sample.url,
                    width=str(sample.width),
                    height=str(sample.height),
                    alt=f"Samples of {run.name} after {sample.batch:,} batches",
                ),
                node("figcaption", f"batch {sample.batch:,}"),
            )
            for sample in run.samples
        ]
        content.append(node("div", *pictures, class_="strip", tabindex="0"))
    return content


def evaluation_tables(runs: Sequence[Run]) -> list[Content]:
    """The rows of each evaluation, newest first."""
    content: list[Content] = []
    for run in runs:
        for evaluation in (each for each in run.evaluations if each.rows):
            label = run.name if len(run.evaluations) == 1 else f"{run.name}: {evaluation.where}"
            summary = node("summary", f"Rows of {label}")
            content.append(node("details", summary, _evaluation_table(evaluation)))
    return content


def _evaluation_table(evaluation: Evaluation) -> Element:
    names = evaluation.names
    rows = [
        [
            count(row.batch),
            *(
                f"{number(row.figures.get(name))}{interval(row.intervals.get(name))}"
                for name in names
            ),
        ]
        for row in evaluation.rows[::-1][:_MOST_ROWS]
    ]
    return table(["batch", *map(title_of, names)], rows, range(len(names) + 1))


def history(runs: Sequence[Run], now: float) -> list[Content]:
    """The processes of each run and what its guard noted."""
    content: list[Content] = []
    for run in runs:
        part: list[Content] = []
        if run.sessions:
            newest_first = run.sessions[::-1][:_MOST_EVENTS]
            rows = [_session(session) for session in newest_first]
            if newest_first[0].exit_code is None and _state(run, now).kind == "going":
                rows[0][0] = "going"
            header = ["end", "from batch", "to batch", "started (UTC)", "ended (UTC)"]
            part.append(table(header, rows, (1, 2)))
        if run.guard is not None and run.guard.counts:
            part += _guard(run)
        if part:
            content += [node("h3", run.name)] if len(runs) > 1 else []
            content += part
    return content


def _session(session: Session) -> list[Content]:
    batches = count(session.first), count(session.last)
    return [session.end, *batches, moment(session.started), moment(session.ended)]


def _guard(run: Run) -> list[Content]:
    assert run.guard is not None
    counts = ", ".join(f"{each:,} x {event}" for event, each in run.guard.counts.items())
    rows = [
        [moment(time), count(batch), event, action]
        for time, batch, event, action in run.guard.newest[::-1][:_MOST_EVENTS]
    ]
    shown = table(["time (UTC)", "batch", "event", "action"], rows, (1,))
    return [node("details", node("summary", f"The guard noted {counts}"), shown)]


def configuration(runs: Sequence[Run]) -> list[Content]:
    """What differs between runs, then each one's whole configuration."""
    content: list[Content] = []
    known = [run for run in runs if run.config]
    if len(known) > 1:
        rows = [[key, *values] for key, values in differences([run.config for run in known])]
        told = "These keys differ:" if rows else "No key differs but names and places."
        content.append(node("p", told))
        content += [table(["key", *(run.name for run in known)], rows)] if rows else []
    for run in runs:
        text = run.config_text or (as_yaml(run.config) if run.config else "")
        if text:
            summary = node("summary", f"Configuration of {run.name}")
            content.append(node("details", summary, node("pre", text)))
    return content


def environment(runs: Sequence[Run]) -> list[Content]:
    """Engine, device and versions of each run's newest process, and its checkpoints."""
    told = [_environment(run) for run in runs]
    names = list(dict.fromkeys(name for facts in told for name in facts))
    rows = [[name, *(facts.get(name, UNKNOWN) for facts in told)] for name in names]
    return [table(["", *(run.name for run in runs)], rows)] if rows else []


def _environment(run: Run) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.sessions:
        facts = {"trained by": run.sessions[-1].place, **run.sessions[-1].versions}
    elif run.manifest is not None:
        manifest = run.manifest
        facts = {"trained by": f"{manifest.engine}, {manifest.world_size} ranks"}
        facts |= manifest.versions
    if run.manifest is not None:
        facts["checkpoints here"] = count(run.checkpoints)
        facts["newest whole one"] = f"batch {run.manifest.batch:,}, {run.manifest.created}"
    return facts


def notes(runs: Sequence[Run], points: int) -> list[Content]:
    """What was left out, and how long curves are shortened."""
    lines = [f"{run.name}: {fault}" for run in runs for fault in run.faults]
    longest = max((len(run.metrics.batches) for run in runs if run.metrics), default=0)
    if longest > points:
        lines.append(
            f"A curve of more than {points} rows is drawn as the means of {points} equal parts, in "
            "the band between each part's lowest and highest value."
        )
    return [node("ul", *(node("li", line) for line in lines))] if lines else []


def _quiet(text: str) -> Element:
    return node("p", text, class_="quiet")
