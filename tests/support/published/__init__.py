"""Published checkpoints of other projects in small, and what those projects' own code gave for them (`references/`)."""

from pathlib import Path

REFERENCES = Path(__file__).parent / "references"
