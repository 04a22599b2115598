"""Compiles the attention kernel when the package is built or installed; all else is in pyproject.toml.

Without a C++ compiler the wheel carries no kernel and is for every platform. The kernel is then compiled at first use,
if there is a compiler by then (core/sparse/build.py).
"""

import importlib.util
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
COMPILER = ROOT / "core" / "sparse" / "compiler.py"
# By its path: importing the package `core` needs torch, which is not there when a wheel is built.
spec = importlib.util.spec_from_file_location("trivium_compiler", COMPILER)
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)
FOLDER = compiler.INSTALLED.relative_to(ROOT)


class BuildKernel(Command):
    """A step of `build`, after the protocol of setuptools.command.build.SubCommand."""

    def initialize_options(self):
        self.build_lib, self.editable_mode, self.files = None, False, []

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        folder = compiler.INSTALLED if self.editable_mode else Path(self.build_lib) / FOLDER
        try:
            self.files = [file.name for file in compiler.install(folder)]
        except (compiler.BuildError, OSError) as error:
            compiler.shutil.rmtree(folder, ignore_errors=True)
            print(f"The attention kernel is not compiled now, but at first use: {error}.")

    def get_source_files(self):
        headers = (ROOT / "core" / "sparse" / "cpp").glob("*.h")
        return [str(path.relative_to(ROOT)) for path in (COMPILER, compiler.KERNEL, *sorted(headers))]

    def get_outputs(self):
        return [str(Path(self.build_lib) / FOLDER / name) for name in self.files]

    def get_output_mapping(self):
        return {out: str(FOLDER / Path(out).name) for out in self.get_outputs() if self.editable_mode}


class Wheel(bdist_wheel):
    """For this platform if the kernel is in it, and for any Python: nothing in it is linked with Python."""

    def run(self):
        self.run_command("build")
        if self.get_finalized_command("build_kernel").files:
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # so that all goes where libraries belong
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else (self.python_tag, "none", platform)


class Build(build):
    sub_commands = [*build.sub_commands, ("build_kernel", None)]


setup(cmdclass={"build": Build, "build_kernel": BuildKernel, "bdist_wheel": Wheel})
