"""Files and where they come from: shipped folders, atomic writes, hashes, locks, JSON of others, hub ids, URLs."""

from dalle.files.json_text import RepeatedName, parse_json
from dalle.files.lfs import lfs_pointer
from dalle.files.local import (
    CHECKOUT,
    ROOT,
    FileLock,
    atomic_file,
    atomic_folder,
    expand_home,
    install_command,
    naming,
    printable,
    remove_parts,
    remove_scratch,
    sha256,
    write_text,
)
from dalle.files.url import missing_path, url_of
from dalle.files.writable import check_file, check_folder

__all__ = [
    "CHECKOUT",
    "ROOT",
    "FileLock",
    "RepeatedName",
    "atomic_file",
    "atomic_folder",
    "check_file",
    "check_folder",
    "expand_home",
    "install_command",
    "lfs_pointer",
    "missing_path",
    "naming",
    "parse_json",
    "printable",
    "remove_parts",
    "remove_scratch",
    "sha256",
    "url_of",
    "write_text",
]
