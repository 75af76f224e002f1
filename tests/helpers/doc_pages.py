"""The documentation's pages taken apart, and whether a command, or a config, that a page shows is accepted by this version.

What runs of it runs for two steps.
"""

import argparse
import importlib.util
import itertools
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from img2img.api import run
from img2img.backbones import BACKBONES, build_backbone
from img2img.research.impresslearn.options import read_study
from img2img.research.suites import runner as suite
from img2img.tasks import task_class
from img2img.training.compose import compose, plain_config
from img2img.training.config import Experiment, read_experiment

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if DOCS / "results" not in p.parents)]
"""All pages; reports among the stored measurements are written by commands."""

_MARK = re.compile(r"<!--\s*not run\b:?(?P<reason>.*?)-->", re.DOTALL)
_COMMAND = re.compile(r"^(?:\$ )?(?P<text>(?:[A-Z_]+=\S+ )*(?:python3?|img2img|make|torchrun|srun|fabric) .*|img2img|make \S+)$")
SHELLS = ("", "sh", "bash", "shell", "console")


def page_name(page: Path) -> str:
    """What tests call a page: its path in the repository."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block, or an indented one of commands.

    Attributes:
        page: the file.
        line: of its first line, from 1.
        language: after the fence; "" for none.
        text: what is in it.
        exempt: why it is not run; None if it is; "" where the mark gives no reason.
        follows: nothing but blank lines stands between it and the block before.
    """

    page: Path
    line: int
    language: str
    text: str
    exempt: str | None
    follows: bool = False

    @property
    def where(self) -> str:
        return f"{page_name(self.page)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that a comment in its first two lines says it is: `# my_tasks.py`, `# configs/experiment/mine.yaml`."""
        for line in self.text.splitlines()[:2]:
            if match := re.match(r"#\s+([\w/.-]+\.(?:py|yaml))\b", line):
                return match[1]
        return None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page and its indented blocks that begin with a command, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    last = 0  # where the text since the last block begins: a mark counts for the next block alone
    i = 0
    while i < len(lines):
        fence = re.match(r"^(\s*)(```+|~~~+)\s*(\w*)", lines[i])
        if fence:
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == fence[2])
            body, language, step = lines[i + 1 : end], fence[3], end + 1
        elif lines[i].startswith("    ") and _COMMAND.match(lines[i].strip()) and (i == 0 or not lines[i - 1].strip()):
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith("    ")), len(lines))
            body, language, step = lines[i:end], "", end
        else:
            i += 1
            continue
        indent = min((len(x) - len(x.lstrip()) for x in body if x.strip()), default=0)
        text = "\n".join(x[indent:] for x in body) + "\n"
        mark = _MARK.search("\n".join(lines[last:i]).rstrip().rpartition("\n\n")[2])
        exempt = None if mark is None else mark["reason"].strip()
        found.append(
            Block(page, i + (2 if fence else 1), language, text, exempt, last > 0 and not "".join(lines[last:i]).strip())
        )
        last = i = step
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block: lines joined at a backslash, without prompts and comments; other lines are output."""
    matches = (_COMMAND.match(line.strip()) for line in text.replace("\\\n", " ").splitlines())
    return [shlex.join(shlex.split(match["text"], comments=True)) for match in matches if match]


def inline_commands(page: Path) -> list[tuple[str, str]]:
    """`(where, command)` of commands between backticks in running text and tables; those with `...` are no whole ones."""
    lines = enumerate(_without_fences(page), start=1)
    command = re.compile(r"`((?:python pipelines/|img2img )[^`]+)`")
    found = ((f"{page_name(page)}:{n}", text) for n, line in lines for text in command.findall(line))
    return [(where, text) for where, text in found if "..." not in text]


def inline_configs(page: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """`(where, key, options)` of configs between backticks in running text: `task: {kind: ...}`, or those of a backbone alone."""
    found = []
    for number, line in enumerate(_without_fences(page), start=1):
        for key, text in re.findall(r"`(?:(task|data|backbone): )?(\{kind: [^`]+\})`", line):
            found.append((f"{page_name(page)}:{number}", key or "backbone", yaml.safe_load(text)))
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """`(line, target)` of the links and images of a page that lead into the repository."""
    for number, line in enumerate(_without_fences(page), start=1):
        text = re.sub(r"(\[)?`[^`]*`", lambda code: code[0] if code[1] else "", line)  # a link's own text may be code
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                yield number, target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    count: Counter[str] = Counter()
    found = set()
    for line in _without_fences(page):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{count[slug]}" if count[slug] else slug)
            count[slug] += 1
    return found


def _without_fences(page: Path) -> list[str]:
    """The lines of a page; those of fenced blocks empty."""
    lines, fence = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^\s*(```+|~~~+)", line)
        if match and (fence is None or match[1] == fence):
            fence = match[1] if fence is None else None
            lines.append("")
        else:
            lines.append("" if fence else line)
    return lines


# ---------------------------------------------------------------------- whether it is accepted

FILLED = {"DATA": "my", "METHOD": "finetune", "SEED": "0", "BACKBONE": "runs/demo", "OUT": "runs/out", "NAME": "pacs"}
"""What stands for words in capitals in commands."""
TINY_TRAIN = {
    "steps": 2,
    "batch_size": 2,
    "checkpoint_every": 2,
    "augmentation": {"crop": 16},
    "validation": {"every": 2, "precise_bn_batches": 1},
    "schedule": {"warmup": 0},
}
TINY = {
    "device": {"threads": 1, "accelerator": "cpu"},
    "evaluation": {"check_images": 1, "panels": 1, "batch_size": 2},
    "compare": {}, "first_train": {},
}  # fmt: skip
TINY_CLASSIFIER = {"mode": "first_task", "kind": "vgg_small", "width": 0.0625, "hidden": []}
TINY_NETWORK = {"mode": "first_task", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}


def _plain(pipeline: str, overrides: list[str], *, configs: Path | None = None) -> dict[str, Any]:
    """The composed config of a pipeline's command, resolved; of `a=1,2` for many runs, that of the first."""
    single = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        first = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
        single.append(text if first is None else f"{override.get_key_element()}={first}")
    if configs is not None and configs.is_dir():
        single.insert(0, f"hydra.searchpath=[file://{configs.resolve()}]")
    return plain_config(compose(pipeline, single))


def _check_pipeline(script: str, arguments: list[str]) -> None:
    """The command line of a script in `pipelines/` is accepted; nothing is run."""
    assert (ROOT / "pipelines" / f"{script}.py").is_file(), f"there is no script {script}"
    arguments = [word for word in arguments if word != "..."]  # what the reader puts there
    arguments = [re.sub(r"(?<![\w.])[A-Z]{3,}\b|(?<==)[A-Z]{3,}\b|(?<=_)[A-Z]{3,}$", _fill, a) for a in arguments]
    for word in arguments:  # an earlier command of the page, which is not run, would have made it
        source = Path(word.removeprefix("backbone.weights="))
        if word.startswith("backbone.weights=runs/") and not source.exists():
            shutil.copytree("runs/demo", source)
    if script == "suite":
        _check_suite(arguments)
        return
    if script == "stand_ins":
        assert len(arguments) == 2, "stand_ins.py takes two folders"
        return
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)  # of Hydra's own options those that pages use
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", type=Path, default=Path("configs"))
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    assert not unknown, f"{script}.py knows no {unknown}, or this test does not"
    assert "--config-dir" not in arguments or options.config_dir.is_dir(), f"the page has no folder {options.config_dir}"
    config = _plain(script, options.overrides, configs=options.config_dir)
    if script == "impresslearn":
        assert read_study(config).seeds
    else:
        assert read_experiment(config).sequence


def _fill(word: re.Match[str]) -> str:
    assert word[0] in FILLED, f"what does {word[0]} stand for? add it to FILLED"
    return FILLED[word[0]]


def _check_suite(arguments: list[str]) -> None:
    if not arguments:
        return
    spec = importlib.util.spec_from_file_location("suite_script", ROOT / "pipelines" / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    jobs: list[suite.Job] = []
    with pytest.MonkeyPatch.context() as patch:
        for run_them in ("run_jobs", "launch_jobs"):
            patch.setattr(suite, run_them, lambda pipeline, some, *options, **more: jobs.extend(some) or [])
        script.main(arguments)
    # The first stands for all: they differ in what the suite's own config says, which test_suite_runner.py composes.
    name = next(argument for argument in arguments if not argument.startswith("-"))
    pipeline = suite.load_suite(ROOT / "configs" / "suite" / f"{name}.yaml").pipeline
    if arguments[-1] == "--seeds":
        assert not jobs, "without a seed nothing runs"
    else:
        assert read_experiment(_plain(pipeline, jobs[0].overrides)).sequence


def _check_img2img(arguments: list[str], *, whole: bool) -> None:
    """The command, its options and the number of its arguments are known to `img2img`; nothing is run.

    Options are parsed without conversion of their values, since files in examples need not exist.
    """
    from typer.main import get_command

    from img2img.cli import app

    command: Any = get_command(app)
    context: Any = None
    name = "img2img"
    while True:
        context = command.context_class(command, info_name=name, parent=context, **command.context_settings)
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
        if not hasattr(command, "get_command"):
            break
        if not rest:  # options of the whole, such as --version
            return
        name, *arguments = rest
        name = "run" if name == "COMMAND" else name
        known = command.list_commands(context)
        command = command.get_command(context, name)
        assert command is not None, f"img2img has no command {name!r}; it has {', '.join(known)}"
    if context.allow_extra_args or "overrides" in values:  # the rest is Hydra's
        if whole and not values.get("help") and name not in ("add-task", "absorb"):
            started = ["experiment=demo"] if name == "demo" else []
            _check_pipeline(values.get("pipeline", "image_to_image"), [*started, *(values.get("overrides") or rest)])
        return
    assert not rest, f"img2img {name} takes no more arguments than it has: {rest}"
    if whole and not values.get("help"):
        required = [p.name for p in command.get_params(context) if p.required and p.param_type_name == "argument"]
        assert not [n for n in required if not values.get(n)], f"img2img {name} needs {required}"


def check_command(text: str, *, whole: bool = True) -> None:
    """A command of a page; those of other programs than this repository's are left to the reader."""
    for joined, words in itertools.groupby(shlex.split(text), lambda word: word in ("&&", "||", "|", ";", ">", "&")):
        if not joined:
            _check_one(list(words), whole=whole)


def _check_one(words: list[str], *, whole: bool) -> None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if re.fullmatch(r"python3? -m img2img", " ".join(words[:3])):
        words = words[2:]
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r"(\./)?pipelines/\w+\.py", word)]
    if scripts:
        _check_pipeline(Path(words[scripts[0]]).stem, words[scripts[0] + 1 :])
    elif words[:1] == ["img2img"]:
        _check_img2img(words[1:], whole=whole)
    elif words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets, f"the Makefile has no target {words[1]}"
    elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        options = [w for w in words[2:] if w.startswith("--")]
        assert all(f'"{o}"' in (ROOT / words[1]).read_text() for o in options), f"{words[1]} lacks one of {options}"


def _tiny(experiment: Experiment, config: dict[str, Any]) -> dict[str, Any]:
    """An experiment for two steps; a backbone of img2img's own by a small one of it."""
    small: dict[str, Any] = {"train": TINY_TRAIN, "tasks": {}, **TINY}
    for name in experiment.sequence:
        task = {key: value for key, value in config["tasks"][name].items() if key != "train"}
        if task["task"]["kind"] == "style":
            task["task"] = {**task["task"], "size": 32, "network": {"name": "efficientnet_lite0", "weights": None}}
        small["tasks"][name] = task
    if config["backbone"]["kind"] in BACKBONES._own:
        whole = any(task_class(task["task"]["kind"]).image_level for task in small["tasks"].values())
        small |= {"backbone": TINY_CLASSIFIER if whole else TINY_NETWORK, "masks": {}}
        small["train"] = {**TINY_TRAIN, "augmentation": {"crop": 32}} if whole else TINY_TRAIN
    return {**config, **small}


def check_config(block: Block, number: int) -> None:
    """A config of the page: written to its file and, of an experiment, composed, its data and tasks made, and learned."""
    whole = block.file is not None
    given = yaml.safe_load(block.text)
    file = Path(block.file or f"configs/experiment/part_{number}.yaml")
    assert file.parts[0] == "configs", f"configs/{file}?"
    text = block.text
    if not whole:  # a part of an experiment, whose other keys are the demo's, or of one of its tasks
        text = "# @package _global_\n" + text
        if given.keys() <= {"task", "data"}:
            task = {"task": {"kind": "colourisation"}, **given}
            text = "# @package _global_\n" + yaml.safe_dump({"name": "part", "sequence": ["one"], "tasks": {"one": task}})
        elif "name" not in given:
            text = f"# @package _global_\ndefaults: [demo, _self_]\n{block.text}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if file.parts[1] != "experiment":
        option = f"{file.parts[1]}={file.stem}"
        experiment = read_experiment(_plain("image_to_image", [option], configs=Path("configs")))
        if file.parts[1] == "backbone":
            build_backbone({**experiment.backbone.options(), "weights": None, "out_channels": 2})
        return
    config = _plain("image_to_image", [f"experiment={file.stem}", "++data_root=my"], configs=Path("configs"))
    experiment = read_experiment(config)
    if "tasks" not in given and "data" not in given:
        return
    for task in experiment.tasks:
        parts = task.data.build()
        classes = {"classes": list(parts.classes)} if task.task.builder.has_classes else {}
        if task.task.kind != "style":  # its network may have weights to be fetched
            built = task.task.build(**classes)
            built.fit(parts.train)
    if whole:
        run(_tiny(experiment, config))
