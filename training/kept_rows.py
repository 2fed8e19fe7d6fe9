"""Hashes of a run's rows beside the models that it saves on its way: in checkpoints and in best/<task>."""

import shutil
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.row_hashes import ROW_HASHES_FILE, RowHashes, write_row_hashes
from .best_checkpoints import BEST_FOLDER


class KeepRowHashes(TrainerCallback):
    """Writes `row_hashes.parquet` into checkpoints and best models; added after the callback that keeps the latter."""

    def __init__(self, hashes: RowHashes):
        self.hashes = hashes

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            write_row_hashes(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"), self.hashes)

    def on_evaluate(self, args, state, control, **kwargs):
        folders = sorted(Path(args.output_dir, BEST_FOLDER).glob("[!.]*")) if args.should_save else []
        new = [folder for folder in folders if not (folder / ROW_HASHES_FILE).is_file()]
        for place, folder in enumerate(new):
            if place == 0:
                write_row_hashes(folder, self.hashes)
            else:
                shutil.copyfile(new[0] / ROW_HASHES_FILE, folder / ROW_HASHES_FILE)
