"""Build the compiled operators that come with the package, for the Paddle of this Python.

    python scripts/build_operators.py

Run it after each change of operators.cc or a header beside it, with a Python of every Paddle that
is to have prebuilt operators. It needs g++ on Linux and x86-64. It compiles one library per
instruction set into bit_paddle/models/native/prebuilt, runs those that this processor supports, and
describes all in contents.json there. Libraries of other versions of Paddle stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's sources, not installed ones

from bit_paddle.models.native import compiler, library, prebuilt
from bit_paddle.system import environment

# Two symbols that newer headers of the compiler take from newer system libraries. With these the
# libraries need glibc 2.14 and no libstdc++ of GCC 11.
OLD_SYSTEMS = """
#include <new>
extern "C" { __attribute__((visibility("hidden"))) char __libc_single_threaded = 0; }
namespace std {
__attribute__((visibility("hidden"))) void __throw_bad_array_new_length() { throw bad_alloc(); }
}
"""


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    import paddle

    prebuilt.FOLDER.mkdir(exist_ok=True)
    version = paddle.__version__
    contents = {
        name: about
        for name, about in prebuilt.read_contents().items()
        if about["paddle"] != version
    }
    flags = set(environment.processor().get("flags", "").split())
    for level, (title, needed) in prebuilt.LEVELS.items():
        path = prebuilt.FOLDER / f"{version}-{level}.so"
        build(path, level)
        result = "not run: this processor does not support it"
        if needed <= flags:
            facts = prebuilt.check(path)
            result = f"correct with oneDNN {facts['onednn']}, bf16: {facts['bf16']}"
        print(f"{path.name} ({title}): {path.stat().st_size:,} bytes, {result}")
        contents[path.name] = {
            "paddle": version,
            "level": level,
            "sources": compiler.sources_hash(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "compiler": compiler_version(),
        }
    text = json.dumps(dict(sorted(contents.items())), indent=2) + "\n"
    (prebuilt.FOLDER / prebuilt.CONTENTS).write_text(text, encoding="utf-8")


def build(path: Path, level: str) -> None:
    """Compile the library ``path`` for the instruction set ``level``, without names of folders."""
    paddle = library.paddle_folder()
    with tempfile.TemporaryDirectory() as folder:
        symbols = Path(folder, "symbols.cc")
        symbols.write_text(OLD_SYSTEMS)
        renamed = {paddle: "paddle", compiler.SOURCES[0].parent: "native", folder: "."}
        extra = [symbols, *(f"-ffile-prefix-map={old}={new}" for old, new in renamed.items())]
        compiler.compile_library(path, level, paddle, [*extra, "-Wl,--build-id=none"])


def compiler_version() -> str:
    command = [*compiler.program(), "--version"]
    return subprocess.run(command, check=True, **compiler.AS_TEXT).stdout.splitlines()[0]


if __name__ == "__main__":
    main()
