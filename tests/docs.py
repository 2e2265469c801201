#!/usr/bin/env python3
"""Keeps the pages true where a program can tell.

    tests/docs.py                        links lead somewhere; named tests exist
    tests/docs.py --settings BIN         docs/settings.md is what the programs in BIN print
    tests/docs.py --settings BIN --write  ... and is written so (./dev docs)

A page names a test as `tests/unit/x_test.c` or, one function of it, `tests/unit/x_test.c#name`.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SPEED.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [["tandem-router"], ["tandem-prefill"], ["tandem-decode"], ["tandem", "up"],
            ["tandem", "generate"], ["tandem", "status"], ["tandem", "explain"],
            ["tandem", "drain"], ["tandem", "tokenize"], ["tandem", "detokenize"]]
SETTINGS_HEAD = """# Settings

Printed from the programs' tables by `./dev docs`; change the tables, not this page. Each setting is read
from the config file (`--config FILE`, YAML), then from the environment, `some-name` as `TANDEM_SOME_NAME`,
then from the arguments, `--some-name VALUE`. Sizes are written like 64K or 1.5G, times like 200ms or 3s.

"""


def broken_references():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            if not (page.parent / link).exists():
                yield f"{page.name}: no {link}"
        for path, _, name in re.findall(r"`(tests/[\w./]*\.\w+)(#(\w+))?`", text):
            if not (ROOT / path).exists():
                yield f"{page.name}: no {path}"
            elif name and not re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")):
                yield f"{page.name}: no {name} in {path}"


def settings_page(programs):
    parts = []
    for command in PROGRAMS:
        shown = subprocess.run([programs / command[0], *command[1:], "--help-markdown"],
                               capture_output=True, text=True, timeout=10)
        if shown.returncode != 0 or not shown.stdout.startswith("## "):
            sys.exit(f"{' '.join(command)} --help-markdown: status {shown.returncode}: {shown.stderr}")
        parts.append(shown.stdout)
    return SETTINGS_HEAD + "\n".join(parts)


def main():
    if "--settings" in sys.argv:
        page, path = settings_page(pathlib.Path(sys.argv[2]).resolve()), ROOT / "docs/settings.md"
        if "--write" in sys.argv:
            path.write_text(page, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != page:
            sys.exit("docs/settings.md is not what the programs print: run ./dev docs")
        return
    broken = list(broken_references())
    print("\n".join(broken))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
