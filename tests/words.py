#!/usr/bin/env python3
"""Checks the text of all tracked files: words that promise later work, tabs and trailing blanks,
missing header guards; says which files and functions have grown long (a warning, no failure).

    tests/words.py [SOURCE_DIR]
"""
import pathlib
import re
import subprocess
import sys

# Split so that this file does not find itself.
WORDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|not (yet )?imple" r"mented|for n" r"ow)\b")
SOURCES = (".c", ".h", ".cu", ".py", ".sh", ".proto", ".cmake", ".md", ".txt")
C = (".c", ".h", ".cu")
FILE_LINES, FUNCTION_LINES = 800, 80


def listed(root):
    """What git tracks; in a tree without git, every file outside build folders."""
    try:
        names = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True)
        if names.returncode == 0:
            return names.stdout.split("\n")
    except FileNotFoundError:
        pass
    paths = (p.relative_to(root) for p in pathlib.Path(root).rglob("*"))
    return [p.as_posix() for p in paths if not p.parts[0].startswith(("build", ".git"))]


def tracked(root):
    for name in listed(root):
        path = pathlib.Path(root, name)
        if (path.suffix in SOURCES or name in ("dev", ".ci/run")) and path.is_file():
            yield name, path.read_text(encoding="utf-8", errors="replace")


def errors(name, text):
    for number, line in enumerate(text.split("\n"), 1):
        word = WORDS.search(line)
        if word:
            yield f"{name}:{number}: \"{word[0]}\""
        if name.endswith(C) and "\t" in line:
            yield f"{name}:{number}: a tab"
        if line.endswith((" ", "\t")) and not name.endswith(".txt"):
            yield f"{name}:{number}: blanks at the end of the line"
    guarded = re.search(r"^#ifndef TANDEM_|^#pragma once", text, re.M)
    if name.endswith(".h") and not guarded and not name.split("/")[-1].startswith("body"):
        yield f"{name}: no include guard (files made to be included several times are named body*.h)"


def warnings(name, text):
    lines = text.split("\n")
    if name.endswith(C) and len(lines) > FILE_LINES:
        yield f"{name}: {len(lines)} lines: is it two modules?"
    start = None
    for number, line in enumerate(lines, 1):
        if name.endswith(C) and re.match(r"^[A-Za-z_].*\)\s*\{?$", line):
            start = number
        if line == "}" and start:
            if number - start > FUNCTION_LINES:
                yield f"{name}:{start}: a function of {number - start} lines"
            start = None


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path(__file__).parents[1])
    files = list(tracked(root))
    for name, text in files:
        for line in warnings(name, text):
            print("long:", line)
    found = [line for name, text in files for line in errors(name, text)]
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
