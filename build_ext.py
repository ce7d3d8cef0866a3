"""The build command: compiler flags that keep the arithmetic exact, and OpenMP where it works."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from setuptools.command.build_ext import build_ext

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    """Compile the kernels; without OpenMP they are correct and single-threaded.

    ``BNCPU_OPENMP=0`` in the environment builds without OpenMP where it would work. ``BNCPU_CFLAGS`` are given to
    compiler and linker after all others, unlike ``CFLAGS``: for sanitizers.
    """

    def build_extensions(self) -> None:
        """Add the flags, then compile."""
        msvc = self.compiler.compiler_type == "msvc"
        # No contraction: a fused multiply-add in one variant only would change its bits.
        compile_args = (
            ["/O2", "/fp:precise"] if msvc else ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off", "-fno-fast-math"]
        )
        link_args: list[str] = [] if msvc else ["-lm"]
        for openmp_compile, openmp_link in self._openmp_candidates(msvc):
            if self._links(openmp_compile, openmp_link):
                compile_args += openmp_compile
                link_args += openmp_link
                break
        else:
            print("bncpu: no working OpenMP found, the kernels will use one thread", file=sys.stderr)
        if self.editable_mode or not self.inplace:
            # The C that a build for another Python left, perhaps for another NumPy, may be newer than its source.
            self.force = True
        last = shlex.split(os.environ.get("BNCPU_CFLAGS", ""))
        for extension in self.extensions:
            extension.include_dirs.append(numpy.get_include())
            extension.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"))
            extension.define_macros.append(("NPY_TARGET_VERSION", "NPY_2_1_API_VERSION"))  # the oldest supported
            extension.extra_compile_args += compile_args + last
            extension.extra_link_args += link_args + last
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            finish = self._later(pool)
            super().build_extensions()
            finish()

    def _later(self, pool: ThreadPoolExecutor) -> Callable[[], None]:
        """Let the compiler only note what it is asked for, and compile in the pool; the result waits, then links.

        So the units of all extensions compile side by side, the longest first, while Cython translates the next one.
        """
        compile_files, link = self.compiler.compile, self.compiler.link_shared_object
        order = [Path(source).stem for extension in self.extensions for source in extension.sources]
        compiling: list[Future[list[str]]] = []
        linking: list[Callable[[], None]] = []

        def compile_later(sources: list[str], **options: Any) -> list[str]:
            in_order = sorted(sources, key=lambda source: order.index(Path(source).stem))  # setuptools sorts by name
            compiling.extend([pool.submit(compile_files, [source], **options) for source in in_order])
            names: list[str] = self.compiler.object_filenames(sources, output_dir=options["output_dir"])
            return names

        def link_later(*args: Any, **options: Any) -> None:
            linking.append(partial(link, *args, **options))

        def finish() -> None:
            for unit in compiling:
                unit.result()
            for extension in linking:
                extension()

        self.compiler.compile, self.compiler.link_shared_object = compile_later, link_later
        return finish

    @staticmethod
    def _openmp_candidates(msvc: bool) -> list[tuple[list[str], list[str]]]:
        if os.environ.get("BNCPU_OPENMP") == "0":
            return []
        if msvc:
            return [(["/openmp"], [])]
        candidates = [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":
            # Apple's clang has no runtime of its own; Homebrew and conda install libomp here.
            for prefix in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp", sys.prefix):
                flags = ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"]
                candidates.append((flags, [f"-L{prefix}/lib", "-lomp", f"-Wl,-rpath,{prefix}/lib"]))
        return candidates

    def _links(self, compile_args: list[str], link_args: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_args)
                self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=link_args)
            except Exception:  # whatever the compiler's own error class is: no OpenMP this way
                return False
        return True
