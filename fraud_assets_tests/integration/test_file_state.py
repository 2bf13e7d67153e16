import threading
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from fraud_assets.lake.file_state import list_sizes

FOLDERS = 500


def test_a_folder_can_be_listed_while_another_writer_creates_it(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def create() -> None:
        for number in range(FOLDERS):
            together.wait()
            (tmp_path / f"{number}").mkdir()

    creating = threading.Thread(target=create, daemon=True)
    creating.start()
    found = []
    for number in range(FOLDERS):
        together.wait()
        found += [list_sizes(LocalFileSystem(), str(tmp_path / f"{number}"), recursive=True) for _ in range(6)]
    creating.join()
    assert found == [{}] * 6 * FOLDERS
