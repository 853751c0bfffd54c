"""The images of a tuning: some to calibrate on, others to measure accuracy and time on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.data.dataset import chosen_names, open_data
from vitdeploy.assess.data.image_set import ImageSet, open_images
from vitdeploy.errors import InputError
from vitdeploy.exporting.options import MaxDrop
from vitdeploy.exporting.quantization.calibration_images import FEWEST_APART, CalibrationImages
from vitdeploy.files.atomic import write_file
from vitdeploy.images.formats import image_endings

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.working_folder import WorkingFolder

MOST_IMAGES = 2048  # read and hashed of a larger data set
MOST_CALIBRATED = 64  # of which half measure ranges: more images take longer than they add


@dataclasses.dataclass(frozen=True)
class TuningData:
    """Images of a data set, apart by content.

    Attributes:
        source: Folder or file.
        calibration: Images to calibrate on.
        held_out: Images that nothing is calibrated on, in the order of their use.
        targets: Class index of each held-out image, (N,) int32; None without labels.
        left_out: Files of the folder that are not among the images.
    """

    source: str
    calibration: CalibrationImages
    held_out: CalibrationImages
    targets: NDArray[np.int32] | None
    left_out: LeftOut | None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        processor: ImageProcessor,
        bound: AccuracyBound,
        labels: Sequence[str],
        seed: int,
        progress: Progress,
    ) -> TuningData:
        """Read and split a data set, by the names, the seed and the content of its images.

        Raises:
            InputError: If there are too few different images, or MaxDrop finds no labels.
        """
        progress.step(f"reading the images of {path}")
        targets = None
        if isinstance(bound, MaxDrop):
            data = open_data(path, labels).subset(MOST_IMAGES, seed)
            images, targets = ImageSet.of(data), data.targets
        else:
            images = open_images(path).subset(MOST_IMAGES, seed)
        whole = CalibrationImages(images, processor, seed, progress)
        distinct = sorted({content: at for at, content in reversed([*enumerate(whole.contents)])}.values())
        if len(distinct) < 2 * FEWEST_APART:
            raise InputError(
                f"{path} has {len(distinct)} different images; tune needs {2 * FEWEST_APART}: half to calibrate on, "
                "half to measure accuracy on",
                what="data", where=path, expected=2 * FEWEST_APART, found=len(distinct), hint="give more images",
            )  # fmt: skip
        names = [images.names[position] for position in distinct]
        chosen = set(chosen_names(names, min(len(distinct) // 2, MOST_CALIBRATED), seed))
        calibration = [position for at, position in enumerate(distinct) if at in chosen]
        others = [position for at, position in enumerate(distinct) if at not in chosen]
        ranked = sorted(others, key=lambda at: hashlib.sha256(f"{seed}\0{images.names[at]}".encode()).digest())
        return cls(
            str(path),
            whole.at(calibration),
            whole.at(ranked),
            None if targets is None else targets[ranked],
            images.left_out,
        )

    def first(self, count: int) -> TuningData:
        """The data with the first held-out images only."""
        kept = list(range(min(count, len(self.held_out.images))))
        targets = None if self.targets is None else self.targets[kept]
        return dataclasses.replace(self, held_out=self.held_out.at(kept), targets=targets)

    def encoded(self, count: int) -> tuple[bytes, ...]:
        """The first held-out image files, at most `count`."""
        images = self.held_out.images
        return tuple(images.load(position) for position in range(min(count, len(images))))

    def write_calibration(self, work: WorkingFolder) -> Path:
        """Write the calibration images into a folder of their own, and return it."""
        folder = work.path / "calibration" / self.calibration.sha256()[:16]
        images, endings = self.calibration.images, image_endings()
        for position, name in enumerate(images.names):
            ending = PurePosixPath(name).suffix.lower()
            file = folder / f"{position:05d}{ending if ending in endings else '.jpg'}"
            if not file.exists():
                write_file(file, images.load(position))
        return folder

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "calibration_images": len(self.calibration.images),
            "calibration_sha256": self.calibration.sha256(),
            "held_out_images": len(self.held_out.images),
            "held_out_sha256": self.held_out.sha256(),
            "labels": self.targets is not None,
        }
