"""The headline table as Markdown, for documents: methods x tasks, the best in bold, what is stored, time and seeds."""

from collections.abc import Sequence

from img2img.reports import text
from img2img.research.suites.aggregate import Stat, final, learned, mean_skill, moved, seconds, sizes
from img2img.research.suites.suite import Method, Suite
from img2img.research.suites.tables import winners


def headline(suite: Suite) -> str:
    """A row a method, a column a task: mean ± standard deviation of the primary metric after the whole sequence.

    In brackets: when the task was just learned, for methods that forget. Bytes for a task are the mean over the tasks.
    """
    columns = [f"{task.name} {task.metric} {'↑' if task.higher_is_better else '↓'}" for task in suite.tasks]
    rows = [["trivial baseline", *(text.number(task.trivial) for task in suite.tasks), "0", "", "", "", ""]]
    wins = {task.name: winners(suite, task)[0] for task in suite.tasks}
    for method in suite.methods:
        cells = []
        for task in suite.tasks:
            cell = _spread(final(method, task))
            cell = f"**{cell}**" if method.label in wins[task.name] else cell
            cells.append(f"{cell} ({_spread(learned(method, task))})" if moved(method, suite) else cell)
        rows.append([method.title, *cells, *_sums(method, suite)])
    return _table(["method", *columns, "mean skill", "stored once", "a task", "training", "seeds"], rows)


def _sums(method: Method, suite: Suite) -> list[str]:
    skill, stored, time = mean_skill(method, suite), sizes(method), seconds(method)
    tasks = max(len(run.tasks) for run in method.runs)
    return [
        text.DASH if skill is None else text.number(skill[0].mean),
        text.DASH if stored is None else text.size(round(stored.shared)),
        text.DASH if stored is None else text.size(round(stored.own / tasks)),
        text.DASH if time is None else text.duration(time.mean),
        str(len(method.runs)),
    ]


def _spread(value: Stat | None) -> str:
    if value is None:
        return text.DASH
    mean = text.number(value.mean)
    return mean if value.std is None else f"{mean} ± {float(f'{value.std:.2g}'):,g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
