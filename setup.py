"""The parts of the build that pyproject.toml cannot express: the version, and the data that lies beside the package."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
# Read as a file: the build imports nothing from this folder.
BUILD = runpy.run_path(str(ROOT / "appliance" / "build.py"))
VERSION: str = BUILD["build_version"](ROOT)


def write_version(package: Path) -> None:
    """Write the build's version into a copy of the package, which lies outside of git."""
    file = package / BUILD["VERSION_FILE"]
    file.unlink(missing_ok=True)  # in an sdist it can be a hard link to the original
    file.write_text(f"{VERSION}\n", encoding="ascii")


class BuildPackage(build_py):
    """Build the package with its version, migrations, policies and manual inside. A checkout keeps them where they are.

    scripts/docs builds the manual. A package that is built without it has none.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / "appliance"
            for name in ("migrations", "policies", "manual"):
                shutil.rmtree(package / name, ignore_errors=True)
                if name != "manual" or (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
            write_version(package)


class BuildSource(sdist):
    """Build the source package with its version inside."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_version(Path(base_dir) / "appliance")


setup(version=VERSION, cmdclass={"build_py": BuildPackage, "sdist": BuildSource})
