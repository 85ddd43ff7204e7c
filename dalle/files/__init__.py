"""Files and where they come from: shipped folders, atomic writes, hashes, locks between processes, ids of the hub."""

from dalle.files.local import (
    CHECKOUT,
    ROOT,
    FileLock,
    atomic_file,
    atomic_folder,
    install_command,
    remove_parts,
    remove_scratch,
    sha256,
    write_text,
)

__all__ = [
    "CHECKOUT",
    "ROOT",
    "FileLock",
    "atomic_file",
    "atomic_folder",
    "install_command",
    "remove_parts",
    "remove_scratch",
    "sha256",
    "write_text",
]
