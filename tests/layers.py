#!/usr/bin/env python3
"""Checks who includes whom (docs/architecture.md, section 3) and that cores do no I/O (section 5).

    tests/layers.py [SOURCE_DIR]      exit 1 and one line per violation
    tests/layers.py --self-test       the checker finds what it must find
"""
import pathlib
import re
import sys

# A folder may include its own headers and those of the folders that it stands on.
ON = {
    "common": [],
    "text": ["common"],
    "kernels": ["common"],
    "kv": ["common"],
    "proto": ["common"],
    "engine": ["kernels", "kv"],
    "xfer": ["kv", "proto"],
    "node": ["engine", "xfer", "proto"],
    "prefill_node": ["node"],
    "decode_node": ["node"],
    "router": ["proto", "text", "common"],
    "client": ["proto", "text", "common"],
}
# Pure code: cores and decisions take the time as an argument and touch nothing outside.
PURE = re.compile(r"(^|[/_])(core|sched|evict|chunk|policy)(_\w+)?\.[ch]$")
IMPURE = re.compile(
    r"\b(clock_now_ns|clock_gettime|gettimeofday|time\(|getrandom|id128_mint|rand\(|random\("
    r"|fopen|open\(|socket\(|pthread_|zmq_|event_base|usleep|nanosleep)"
)
INCLUDE = re.compile(r'^\s*#\s*include\s*"([a-z_]+)/[^"]*"', re.M)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)


def closure(folder):
    seen = {folder}
    todo = [folder]
    while todo:
        for below in ON[todo.pop()]:
            if below not in seen:
                seen.add(below)
                todo.append(below)
    return seen


def violations(path, text):
    folder = path.split("/")[0]
    allowed = closure(folder)
    for match in INCLUDE.finditer(text):
        if match[1] not in allowed:
            line = text[: match.start()].count("\n") + 1
            yield f"{path}:{line}: {folder} may not include {match[1]}/"
    if PURE.search(path):
        code = COMMENT.sub(lambda m: "\n" * m[0].count("\n"), text)
        for match in IMPURE.finditer(code):
            line = code[: match.start()].count("\n") + 1
            yield f"{path}:{line}: {match[1].rstrip('(')} in a core: time and I/O belong to the shell"


def check(root):
    found = []
    for folder in ON:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".c", ".h", ".cu"):
                name = path.relative_to(root).as_posix()
                found += violations(name, path.read_text(encoding="utf-8"))
    return found


def self_test():
    bad = [
        ("router/a.c", '#include "kv/pool.h"\n'),
        ("common/a.h", '# include "text/bpe.h"'),
        ("kernels/a.c", 'int x;\n#include "kv/pool.h"'),
        ("client/a.c", '#include "router/core.h"'),
        ("node/core.c", "uint64_t now = clock_now_ns();"),
        ("router/sched.c", "int fd = socket(1, 2, 3);"),
        ("node/core_decode.c", "pthread_mutex_lock(&m);"),
    ]
    good = [
        ("node/a.c", '#include "kernels/backend.h"\n#include "common/err.h"'),
        ("engine/a.c", '#include "kv/pool.h"\n#include <zmq.h>'),
        ("node/core.c", "/* never calls clock_now_ns */ int f(uint64_t now_ns);"),
        ("node/shell.c", "uint64_t now = clock_now_ns();"),
        ("router/score.c", "uint64_t now = clock_now_ns();"),
    ]
    missed = [name for name, text in bad if not list(violations(name, text))]
    wrong = [name for name, text in good if list(violations(name, text))]
    return [f"{n}: not found" for n in missed] + [f"{n}: found by mistake" for n in wrong]


def main():
    if sys.argv[1:] == ["--self-test"]:
        found = self_test()
    else:
        root = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1]
        found = check(pathlib.Path(root))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
