import threading
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from fraud_assets.lake.file_state import list_sizes

FOLDERS = 500


def test_a_folder_can_be_listed_while_another_writer_creates_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def create() -> None:
        for number in range(FOLDERS):
            barrier.wait()
            (tmp_path / f"{number}").mkdir()

    creator = threading.Thread(target=create, daemon=True)
    creator.start()
    listings = []
    for number in range(FOLDERS):
        barrier.wait()
        listings += [list_sizes(LocalFileSystem(), str(tmp_path / f"{number}"), recursive=True) for _ in range(6)]
    creator.join()
    assert listings == [{}] * 6 * FOLDERS
