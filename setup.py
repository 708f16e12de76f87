"""Build the compiled step of the models with the package. All else that setuptools needs is in pyproject.toml.

The library has the functions of `step.c` once for each level of processors, and picks one when it runs. It needs no
headers of Python, since `ctypes` calls it. Where it cannot be built, the package is installed without it.
"""

from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

STEPS = "tinystory/session/steps"
OPTIONS = ["-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-g0"]
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_LEVELS = {"plain": [], "avx2": AVX2, "avx512": AVX512}
"""The levels of a processor with x86-64, and the options that let the compiler use their instructions."""


class BuildStep(build_ext):
    """Build one library from several builds of one source."""

    def build_extension(self, ext: Extension) -> None:
        """Compile `step.c` for every level, and link the results with `level.c`."""
        step, level = ext.sources
        is_x86 = self.plat_name.endswith(("x86_64", "amd64"))
        objects = self._compiled(level, "level", [("X86_LEVELS", "1")] if is_x86 else [])
        for name, options in (X86_LEVELS if is_x86 else {"plain": []}).items():
            objects += self._compiled(step, name, [("LEVEL", name)], options)
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=["m"])

    def _compiled(
        self, source: str, name: str, macros: list[tuple[str, str]], options: Sequence[str] = ()
    ) -> list[str]:
        folder = str(Path(self.build_temp) / name)
        return self.compiler.compile([source], folder, macros, extra_postargs=[*OPTIONS, *options])


sources = [f"{STEPS}/step.c", f"{STEPS}/level.c"]
setup(
    ext_modules=[Extension("tinystory.session.steps._step", sources, optional=True, py_limited_api=True)],
    cmdclass={"build_ext": BuildStep},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
