"""Files and where they come from: shipped folders, checked and atomic writes, hashes, locks, ids of the hub."""

from dalle.files.local import (
    CHECKOUT,
    ROOT,
    FileLock,
    atomic_file,
    atomic_folder,
    install_command,
    naming,
    printable,
    remove_parts,
    remove_scratch,
    sha256,
    write_text,
)
from dalle.files.writable import check_file, check_folder

__all__ = [
    "CHECKOUT",
    "ROOT",
    "FileLock",
    "atomic_file",
    "atomic_folder",
    "check_file",
    "check_folder",
    "install_command",
    "naming",
    "printable",
    "remove_parts",
    "remove_scratch",
    "sha256",
    "write_text",
]
