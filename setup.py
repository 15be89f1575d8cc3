"""The sample model and its samples go into the package, for `onnxprune demo`; a clone has them in `benchmarks/`."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

SAMPLES = ("models/resnet20_fmnist.onnx", "data/calib.npz", "data/LICENSE.txt")


class WithSamples(build_py):
    """Copies them too; an editable install finds them in the clone."""

    def run(self) -> None:
        super().run()
        for source, target in self._samples():
            self.mkpath(str(target.parent))
            copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._samples())]

    def _samples(self) -> list[tuple[Path, Path]]:
        if self.editable_mode:
            return []
        into = Path(self.build_lib, "onnxprune", "demo")
        return [(Path("benchmarks", name), into / Path(name).name) for name in SAMPLES]


setup(cmdclass={"build_py": WithSamples})
