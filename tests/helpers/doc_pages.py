"""The documentation's pages taken apart: fenced blocks, commands, links."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
