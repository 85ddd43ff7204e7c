"""A folder of images with captions: in metadata files, or in a sidecar text file beside each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dalle.data.custom.annotations import IN_PARQUET, TABLES, read_caption_table
from dalle.data.custom.columns import CAPTIONS, read_captions, usual_name
from dalle.data.custom.listed import ListedImages, key_of
from dalle.data.custom.metadata import is_metadata
from dalle.data.custom.records import EMPTY, FileSpan, Record, RecordIndex, Shard, Source, require_utf8
from dalle.data.custom.texts import decode_text, read_json
from dalle.data.custom.walk import count_by_extension, describe_ignored, extension, log_ignored, normalized_name, walk
from dalle.files import expand_home, missing_path
from dalle.images.read import EXTENSIONS

_TEXTS = (".txt", ".caption")  # extensions of sidecar files
_STATISTICS = "_stats.json"  # written by img2dataset beside its shards


class FolderSource(Source):
    """The images listed by metadata files or, without one, all images with a sidecar NAME.txt (or .caption, .json).

    If there are neither, tables of captions under other names are read, such as COCO's annotations. A record's key is
    the image's path within the folder.

    Args:
        root: the folder.
        files: the files in it to consider.
        caption: caption column of the metadata, or extension of the sidecar files ("json.ENTRY": an entry of
            NAME.json); None tries the usual names.
        captioned: whether images without a caption are left out.
        others: files of other splits, whose rows of the metadata are left out.

    Attributes:
        index: the records.
        ignored: number of unused files by reason.

    Raises:
        ValueError: there are no images or no captions, or a metadata file cannot be read or lists a missing image.
    """

    def __init__(
        self,
        root: Path,
        files: list[Path],
        caption: str | None,
        captioned: bool = True,
        others: Collection[Path] = (),
    ):
        metadata = [file for file in files if is_metadata(file)]
        images = [file for file in files if extension(file) in EXTENSIONS]
        sidecars, listed = _SidecarCaptions(files, caption), ListedImages(root, files, others)
        if not images and not (metadata and captioned):
            raise no_images(root, files, ".parquet", ".tar")
        for file in metadata:
            listed.add_metadata(file, caption, captioned)
        records = listed.records()
        if not metadata:
            records = [sidecars.record(root, image) for image in images]
            if not any(record.captions for record in records):
                tables = _add_tables(listed, files, sidecars, caption)
                if captioned and not tables:
                    raise _no_captions(root, files, images, sidecars, records)
                records, metadata = listed.records(), tables
        if not captioned:
            records = _with_all_images(root, listed.records(), images, sidecars)
        self.index = RecordIndex(map(require_utf8, records))
        taken = {record.image.file for record in records if isinstance(record.image, FileSpan)}
        self.ignored = _count_ignored(
            files, taken | {str(file) for file in (*metadata, *sidecars.used)}, bool(metadata)
        )
        self.ignored["captions of images that are not there"] += listed.missing

    def rows(self) -> RecordIndex:
        """All records by index."""
        return self.index

    def shards(self, images: bool = True) -> list[Shard]:
        """The same records for sequential reading, shard by shard."""
        return [Shard("", lambda: (self.index.record(row) for row in range(len(self.index))))]


class _SidecarCaptions:
    """Finds captions in sidecar files: the lines of NAME.txt or NAME.caption, or entries of NAME.json.

    Attributes:
        used: the sidecar files found so far.
    """

    def __init__(self, files: list[Path], caption: str | None):
        self.used: list[Path] = []
        self.entries: tuple[str, ...] = CAPTIONS
        self.extensions: tuple[str, ...] = (*_TEXTS, ".json")
        if caption is not None:
            # "txt" is an extension; "json.title" an extension and an entry of the file
            kind, _, entry = caption.partition(".")
            self.extensions = (f".{kind.lower()}",)
            if kind == "json" and entry:
                self.entries = (entry,)
        known = {*_TEXTS, ".json", *self.extensions}
        self.files = {normalized_name(file): file for file in files if extension(file) in known}

    def of(self, image: Path) -> Path | None:
        """The sidecar file of an image, NAME.txt or NAME.jpg.txt; of several, that of the first extension."""
        for kind in self.extensions:
            for name in (image.with_suffix(kind), Path(f"{image}{kind}")):  # a.txt; a.jpg.txt, as some tools write
                found = self.files.get(normalized_name(name))
                if found is not None:
                    return found
        return None

    def wanted(self, image: Path) -> str:
        """The expected names of an image's sidecar file, for messages."""
        return " or ".join(image.with_suffix(kind).name for kind in self.extensions)

    def record(self, root: Path, image: Path) -> Record:
        """The record of an image; without a usable sidecar file, a record with a fault."""
        key, text = key_of(root, image), self.of(image)
        if text is None:
            # Named when it is met, not left out in silence
            return Record(key, fault=f"there is no caption: expected it in {self.wanted(image)}")
        # Sidecar files of other kinds describe this image too: do not report them as unused.
        self.used += [
            file for kind in (*_TEXTS, ".json") if (file := self.files.get(normalized_name(image.with_suffix(kind))))
        ]
        self.used.append(text)
        try:
            is_json, content = extension(text) == ".json", text.read_bytes()
            value = self._entry(content) if is_json else decode_text(content)
            captions, fault = read_captions(value, lines=not is_json)
        except (OSError, ValueError) as error:  # invalid JSON or UTF-8
            captions, fault = (), f"{text.name} cannot be read ({error})"
        return Record(key, captions, FileSpan(str(image)), None, fault)

    def _entry(self, content: bytes) -> Any:
        entries = read_json(content)
        name = usual_name(entries, self.entries) if isinstance(entries, dict) else None
        return None if name is None else entries[name]


def has_sidecar_captions(files: list[Path], caption: str | None) -> bool:
    """Whether any image among these files has a sidecar file."""
    sidecars = _SidecarCaptions(files, caption)
    return any(sidecars.of(file) is not None for file in files if extension(file) in EXTENSIONS)


def no_images(root: Path, files: list[Path], *readable: str) -> ValueError:
    """The error for a folder without images, with what is there in their place."""
    there = describe_ignored(count_by_extension(files))
    expected = f"expected {', '.join(EXTENSIONS)}{''.join(f', {other}' for other in readable)} files in it"
    embedded = f"; {IN_PARQUET}" if any(extension(file) in (".csv", ".tsv", ".jsonl") for file in files) else ""
    return ValueError(f"{root} holds no images: {expected}{f'; found {there}' if there else ''}{embedded}")


def _no_captions(
    root: Path, files: list[Path], images: list[Path], sidecars: _SidecarCaptions, records: list[Record]
) -> ValueError:
    """The error for images of which none has a caption: why the first has none, and which files may hold them."""
    expected = f"metadata.jsonl, metadata.csv or NAME{sidecars.extensions[0]} beside NAME{images[0].suffix}"
    message = f"{root} holds images but no captions: expected {expected}"
    read = {str(file) for file in sidecars.used}
    if read:
        first = next(record for record, image in zip(records, images, strict=True) if sidecars.of(image) is not None)
        message += f"; {first.key}: {first.fault or first.caption_fault or EMPTY}"
    others = [file for file in files if extension(file) in TABLES and str(file) not in read]
    if others:
        table = read_caption_table(others[0])
        reason = table if isinstance(table, str) else f"none of its images is there, as {table.rows[0][0][:60]!r}"
        message += (
            f"; {others[0].relative_to(root)} is not read ({reason}): make it a metadata.csv, with the columns "
            "file_name and text"
        )
    return ValueError(message)


def _add_tables(listed: ListedImages, files: list[Path], sidecars: _SidecarCaptions, caption: str | None) -> list[Path]:
    """Add the captions of all tables that name images of the folder; returns these tables."""
    found, read = [], {str(file) for file in sidecars.used}
    for file in files:
        if extension(file) in TABLES and str(file) not in read and not file.name.endswith(_STATISTICS):
            table = read_caption_table(file, caption)
            if not isinstance(table, str) and listed.names_any(table):
                listed.add_table(table)
                found.append(file)
    return found


def _count_ignored(files: list[Path], used: set[str], metadata: bool) -> Counter[str]:
    """The number of unused files by reason."""
    others = [file for file in files if str(file) not in used and not file.name.endswith(_STATISTICS)]
    named = "images not listed in a metadata file" if metadata else "images without a caption"
    reasons = dict.fromkeys(EXTENSIONS, named) | dict.fromkeys(_TEXTS, "texts without an image")
    reasons |= {".parquet": "tables beside images (.parquet)", ".tar": "archives beside images (.tar)"}
    rest = [file for file in others if extension(file) not in reasons]
    unsupported = {file.with_suffix("") for file in rest}
    reported = [  # but not the text of an unsupported image, which is reported itself
        file
        for file in others
        if extension(file) in reasons and not (extension(file) in _TEXTS and file.with_suffix("") in unsupported)
    ]
    return Counter(reasons[extension(file)] for file in reported) + count_by_extension(rest)


def count_unsupported(files: list[Path], *readable: str) -> Counter[str]:
    """The number of files by extension that are neither images nor captions, nor have another `readable` extension."""
    known = {*EXTENSIONS, *_TEXTS, ".json", ".jsonl", ".csv", *readable}
    return count_by_extension(file for file in files if extension(file) not in known)


def _with_all_images(root: Path, records: list[Record], images: list[Path], sidecars: _SidecarCaptions) -> list[Record]:
    """The records and one for every other image, with or without captions."""
    listed = {record.key: record for record in records}
    for image in images:
        key = key_of(root, image)
        if key not in listed:
            has_text = sidecars.of(image) is not None
            listed[key] = sidecars.record(root, image) if has_text else Record(key, (), FileSpan(str(image)))
    return list(listed.values())


def image_files(path: str | Path) -> list[Record]:
    """Records without captions of an image file, or of all images in a folder and its subfolders, sorted by path.

    A file given by name is accepted whatever its extension; hidden files are left out.

    Raises:
        ValueError: the path does not exist, or there are no images in it.
    """
    root = expand_home(path)
    if root.is_file():
        return [require_utf8(Record(str(root), (), FileSpan(str(root))))]
    if not root.is_dir():
        raise ValueError(missing_path(root, f"{root}: no such file or folder"))
    walked = walk(root)
    found = [file for file in walked.files if extension(file) in EXTENSIONS]
    if not found:
        raise no_images(root, walked.files)
    log_ignored(root, walked.ignored + count_unsupported(walked.files))
    return [require_utf8(Record(str(file), (), FileSpan(str(file)))) for file in found]
